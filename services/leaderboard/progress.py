"""How far behind the rankings are: said in every answer."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bellhop.contracts.base import now

LOOK_SECONDS = 0.25

# A consumer has nothing waiting also in the moment between subscribing and its first delivery.
QUIET = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Freshness:
    """What an answer says about its age."""

    as_of: datetime | None
    """Every score that the gateway took before is in the answer. None: not known since this process started."""
    lag_seconds: float | None
    """How long ago that was."""
    pending: int | None
    """Messages that wait to be applied: those that are here already. None: this process is not consuming."""


class Progress:
    """Knows what is in hand, and when there was last nothing to do.

    The queue is first in, first out: what was published before the newest applied message has been applied, and
    while nothing waits, everything has. A replica that stands by learns of scores from the database instead, and may
    be behind by one batch and one refresh more than it says.
    """

    def __init__(self, waiting: Callable[[], int | None]) -> None:
        """`waiting` returns how many messages wait here, or None while not consuming."""
        self._waiting = waiting
        self._in_hand = 0
        self._as_of: datetime | None = None
        self._quiet_since: datetime | None = None

    def took(self, messages: int) -> None:
        """Note that so many messages are being applied; 0: that they are settled."""
        self._in_hand = messages

    def applied(self, newest: datetime) -> None:
        """Note that every message up to the one published at `newest` is applied."""
        self._in_hand = 0
        self._reach(min(newest, now()))

    def look(self) -> None:
        """Note whether there is anything to do at this moment. Call it every `LOOK_SECONDS`."""
        moment = now()
        if self._pending() != 0:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = moment
        elif moment - self._quiet_since >= QUIET:
            self._reach(moment)

    def freshness(self) -> Freshness:
        """Return what is known now."""
        lag = max(0.0, (now() - self._as_of).total_seconds()) if self._as_of is not None else None
        return Freshness(self._as_of, lag if lag is None else round(lag, 3), self._pending())

    def _pending(self) -> int | None:
        waiting = self._waiting()
        return None if waiting is None else waiting + self._in_hand

    def _reach(self, moment: datetime) -> None:
        if self._as_of is None or moment > self._as_of:
            self._as_of = moment
