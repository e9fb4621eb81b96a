"""How far behind the rankings are: said in every answer."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from bellhop.contracts.base import now

LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an answer says about its age."""

    as_of: datetime | None
    """Every score that a gateway answered 202 before is in the answer. None: not known yet."""
    lag_seconds: float | None
    """How long ago that was."""
    pending: int | None
    """Messages with scores that wait here. None: this replica does not take them off the queue."""


class Progress:
    """Knows up to when scores are counted, and how many messages wait.

    `as_of` comes from marks that gateways publish among the scores (services/gateway/leaderboards/marks.py) and is
    committed with the scores before it. So it stands still while a batch is in hand, while this replica cannot read
    the database, and while scores wait in an outbox. It does not pass scores on the retry ladder either (puller.py).
    """

    def __init__(self, as_of: Callable[[], datetime | None], waiting: Callable[[], int | None]) -> None:
        """`as_of` and `waiting` return what is shown and what waits at this moment; None where it is not known."""
        self._as_of = as_of
        self._waiting = waiting
        self._seen: int | None = None
        self._in_hand = 0

    def took(self, messages: int) -> None:
        """Note that so many messages are being applied; 0: that they are settled."""
        self._in_hand = messages

    def look(self) -> None:
        """Note what waits. Call it every `LOOK_SECONDS`."""
        self._seen = self._waiting()

    def freshness(self) -> Freshness:
        """Return what is known now."""
        current, as_of = now(), self._as_of()
        pending = None if self._seen is None else self._seen + self._in_hand
        if as_of is None:
            return Freshness(None, None, pending)
        as_of = min(as_of, current)  # the clock of a gateway may be ahead
        return Freshness(as_of, round((current - as_of).total_seconds(), 3), pending)
