"""Errors between a service and the broker.

PublishError            the message is not confirmed: answer 503, or leave it in the outbox
  BrokerUnavailable     no connection, or a resource alarm blocks it: not published
  Refused               a nack: a queue is full (overflow=reject-publish)
  Unroutable            no binding matched: not published
  Unconfirmed           no confirm in time, or the connection was lost: it may have been published
StreamReplaced          the stream was deleted and declared again: known offsets are invalid
HandlerSignal           raised by a handler to decide how its delivery is settled
  Reject                it can never succeed: dead letter
    AttemptsSpent       its last attempt failed: dead letter
  Retry                 this attempt failed: a retry queue, while attempts are left
  Defer                 it has to wait: a retry queue; no attempt is counted
  Hold                  a dependency is unavailable: the delivery is kept; no attempt is counted
    GiveBack            Hold, where another replica may be able to work: the batch and the consumer are given back
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
    """Whether the broker has the message is unknown; publish it again with the same event id."""


class StreamReplaced(Exception):
    """The stream was deleted and declared again since it was last read."""


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
        """`after`: seconds until the next attempt at the earliest; None: the retry policy decides."""
        super().__init__(reason)
        self.after = after


class Defer(HandlerSignal):
    """The message has to wait: it goes to a retry queue and returns as the same attempt."""

    def __init__(self, reason: str, *, after: float, headers: Mapping[str, Any] | None = None) -> None:
        """`after`: how many seconds to wait. `headers`: AMQP headers that the message comes back with."""
        super().__init__(reason)
        self.after = after
        self.headers = headers or {}


class Hold(HandlerSignal):
    """The handler cannot work at the moment; no attempt is counted."""


class GiveBack(Hold):
    """The handler cannot work at the moment; another replica may be able to."""
