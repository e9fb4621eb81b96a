"""Who may use a connection to the relay: the lanes share them, and the more urgent lane goes first.

Bulk may fill 60 % of them, normal and bulk together 85 %; the rest is always free for urgent mail. Otherwise a
newsletter whose recipients' servers are slow would hold every connection, for minutes, against a password reset.
"""

import asyncio
from collections import deque

from bellhop.contracts.mail import Lane

# From the most urgent down: the share of all slots that this lane and the less urgent ones may fill together.
SHARES = {Lane.URGENT: 1.0, Lane.NORMAL: 0.85, Lane.BULK: 0.6}


class Lanes:
    """A semaphore of `size` slots that knows who asks."""

    def __init__(self, size: int) -> None:
        self._limits = {lane: max(1, int(size * share)) for lane, share in SHARES.items()}
        self._busy = dict.fromkeys(SHARES, 0)
        self._waiting: dict[Lane, deque[asyncio.Future[None]]] = {lane: deque() for lane in SHARES}

    def limit(self, lane: Lane) -> int:
        """Return how many slots `lane` may use when it is alone."""
        return self._limits[lane]

    @property
    def busy(self) -> int:
        """Return how many slots are taken."""
        return sum(self._busy.values())

    def try_enter(self, lane: Lane) -> bool:
        """Take a slot if there is one now; then `leave` must follow."""
        if self._waiting[lane] or not self._free(lane):
            return False
        self._busy[lane] += 1
        return True

    async def enter(self, lane: Lane) -> None:
        """Wait for a slot and take it; `leave` must follow."""
        if not self.try_enter(lane):
            await self._wait(lane)

    def leave(self, lane: Lane) -> None:
        """Give a slot back."""
        self._busy[lane] -= 1
        self._wake()

    async def _wait(self, lane: Lane) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(turn)
        try:
            await turn  # whoever frees a slot has counted it as ours
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(lane)
            raise

    def _free(self, lane: Lane) -> bool:
        """Say whether one more fits, for `lane` itself and for every more urgent lane that counts it in."""
        busy = 0
        for each in reversed(SHARES):
            busy += self._busy[each]
            if _at_least_as_urgent(each, lane) and busy >= self._limits[each]:
                return False
        return True

    def _wake(self) -> None:
        for lane, waiting in self._waiting.items():
            while waiting and self._free(lane):
                turn = waiting.popleft()
                if not turn.done():
                    self._busy[lane] += 1
                    turn.set_result(None)


_ORDER = {lane: place for place, lane in enumerate(SHARES)}


def _at_least_as_urgent(one: Lane, other: Lane) -> bool:
    return _ORDER[one] <= _ORDER[other]
