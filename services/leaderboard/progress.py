"""Freshness of the rankings, which every answer reports."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bellhop.contracts.base import now

LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Freshness:
    """Age of an answer."""

    as_of: datetime | None
    """Every score that a gateway answered 202 before this time is in the answer. None: not known yet."""
    lag_seconds: float | None
    """Seconds since `as_of`."""
    pending: int | None
    """Messages with scores that wait. None: this replica does not consume them."""


class Progress:
    """Reports up to which time scores are applied, and how many messages wait.

    `as_of` comes from marks that gateways publish in order with the scores (services/gateway/leaderboards/marks.py) and
    is committed with the scores before it. It does not advance while a batch is being applied, while this replica
    cannot read the database, while scores wait in an outbox, and beyond scores that wait in a retry queue (puller.py).
    """

    def __init__(self, as_of: Callable[[], datetime | None], waiting: Callable[[], int | None]) -> None:
        """`as_of` and `waiting` return the current values; None if they are not known."""
        self._as_of = as_of
        self._waiting = waiting
        self._seen: int | None = None
        self._in_hand = 0

    def took(self, messages: int) -> None:
        """Note the number of messages that are being applied; 0 when they are settled."""
        self._in_hand = messages

    def look(self) -> None:
        """Update the number of waiting messages. Call it every `LOOK_SECONDS`."""
        self._seen = self._waiting()

    def freshness(self) -> Freshness:
        """Return the current freshness."""
        current, as_of = now(), self._as_of()
        pending = None if self._seen is None else self._seen + self._in_hand
        if as_of is None:
            return Freshness(None, None, pending)
        as_of = min(as_of, current)  # the clock of a gateway may be ahead
        return Freshness(as_of, round((current - as_of).total_seconds(), 3), pending)
