"""The lanes share the connections of a worker, and the more urgent lane goes first.

Bulk may use 60 % of the connections, normal and bulk together 85 %. The rest is always free for urgent tasks.
Otherwise many slow bulk tasks would hold every connection for minutes while a password reset waits.
"""

import asyncio
from collections import deque

from bellhop.contracts.tasks import Lane

# From the most urgent down: the share of all slots that this lane and the less urgent ones may use together.
SHARES = {Lane.URGENT: 1.0, Lane.NORMAL: 0.85, Lane.BULK: 0.6}


class Lanes:
    """A semaphore with `size` slots and a limit for each lane."""

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
        """Take a slot if one is free now, and say so; then the caller must call `leave`."""
        if self._waiting[lane] or not self._free(lane):
            return False
        self._busy[lane] += 1
        return True

    async def enter(self, lane: Lane) -> None:
        """Wait for a slot and take it; then the caller must call `leave`."""
        if not self.try_enter(lane):
            await self._wait(lane)

    def leave(self, lane: Lane) -> None:
        """Give a slot back."""
        self._busy[lane] -= 1
        self._wake()

    async def _wait(self, lane: Lane) -> None:
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[lane].append(slot)
        try:
            await slot  # `_wake` has counted the slot as ours
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():
                self.leave(lane)
            raise

    def _free(self, lane: Lane) -> bool:
        """Return whether one more slot is within the limit of `lane` and of every more urgent lane."""
        busy = 0
        for each in reversed(SHARES):
            busy += self._busy[each]
            if _at_least_as_urgent(each, lane) and busy >= self._limits[each]:
                return False
        return True

    def _wake(self) -> None:
        for lane, waiting in self._waiting.items():
            while waiting and self._free(lane):
                slot = waiting.popleft()
                if not slot.done():
                    self._busy[lane] += 1
                    slot.set_result(None)


_ORDER = {lane: place for place, lane in enumerate(SHARES)}


def _at_least_as_urgent(one: Lane, other: Lane) -> bool:
    return _ORDER[one] <= _ORDER[other]
