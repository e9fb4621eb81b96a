"""What can go wrong between a service and the broker.

PublishError            the message may not be out; say 503, or leave it in the outbox
  BrokerUnavailable     no connection, or a resource alarm blocks it: certainly not taken
  Refused               a nack: some queue is full (overflow=reject-publish)
  Unroutable            no binding matched: certainly not taken
  Unconfirmed           no answer in time, or the connection died: it may have been taken
StreamReplaced          the stream is another one than we were reading; offsets mean nothing any more
HandlerSignal           raised by a handler to decide how its delivery is settled
  Reject                it can never succeed: dead letter
    AttemptsSpent       it failed at its last attempt: dead letter
  Retry                 this attempt failed: a retry queue, while attempts are left
  Defer                 it has to wait: a retry queue, and the attempt does not count
  Hold                  a dependency is unavailable: the delivery is kept, and the attempt does not count
    GiveBack            the same, and another replica may be able to: the batch and its consumer are given back
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

    reason = "rejected"

    def __init__(self, text: str, *, details: str | None = None) -> None:
        """`details` are kept with the dead letter in place of `text`: a traceback, for example."""
        super().__init__(text)
        self.details = details


class AttemptsSpent(Reject):
    """The last attempt failed."""

    reason = "attempts-spent"


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
