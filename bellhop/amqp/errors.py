"""What can go wrong between a service and the broker.

PublishError            the message may not be out; say 503, or leave it in the outbox
  BrokerUnavailable            no connection, or a resource alarm blocks it: certainly not taken
  Refused               a nack: some queue is full (overflow=reject-publish)
  Unroutable            no binding matched: certainly not taken
  Unconfirmed           no answer in time, or the connection died: it may have been taken
StreamReplaced          the stream is another one than we were reading; offsets mean nothing any more
HandlerSignal           what a handler raises to say what should become of its delivery
  Reject                never possible: dead letter
  Retry                 not this time: the retry ladder, while attempts are left
  Defer                 its turn is later: the retry ladder, and the attempt does not count
  Hold                something this service stands on is away: hand it back, count nothing
    GiveBack            the same, and another replica may be able to: of a batch, the consumer is given back, too
"""

from collections.abc import Mapping
from typing import Any

from bellhop.errors import Unavailable


class PublishError(Unavailable):
    """The message was not confirmed."""


class BrokerUnavailable(PublishError):
    """There is no usable connection; the message was not sent."""


class Refused(PublishError):
    """The broker answered nack: a queue that the message was routed to is full."""


class Unroutable(PublishError):
    """The broker returned the message: no binding of the exchange matches its routing key."""


class Unconfirmed(PublishError):
    """The fate of the message is unknown; publish again with the same event id."""


class StreamReplaced(Exception):
    """The stream was deleted and made anew since we read it last."""


class HandlerSignal(Exception):
    """Raised by a handler; the text is kept with the message as its reason."""


class Reject(HandlerSignal):
    """The message can never succeed."""


class Retry(HandlerSignal):
    """The message may succeed later."""

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        """`after`: at the earliest in so many seconds, where somebody said so."""
        super().__init__(reason)
        self.after = after


class Defer(HandlerSignal):
    """The turn of the message has not come: it waits on the ladder and comes back as the same attempt."""

    def __init__(self, reason: str, *, after: float, headers: Mapping[str, Any] | None = None) -> None:
        """`after`: how many seconds to wait. `headers`: AMQP headers that the message comes back with."""
        super().__init__(reason)
        self.after = after
        self.headers = headers or {}


class Hold(HandlerSignal):
    """The handler cannot work at all at the moment; the attempt does not count."""


class GiveBack(Hold):
    """The handler cannot work at all at the moment; another process may be able to."""
