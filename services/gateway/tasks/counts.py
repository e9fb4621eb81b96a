"""Counts of rows that are made on request, but without long waits and not too often.

Counters that every change updates would make all gateways wait for one row. So the shown numbers (tasks by state, dead
letters by group, people by list) are counted on request. Where that takes long, the answer is the number of some
seconds ago while the next count runs. Such a number is only for display: no decision may depend on it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

from bellhop.background import spawn
from bellhop.errors import Unavailable
from bellhop.observe.logs import get_logger

QUICK_SECONDS = 0.01
"""A count that takes no longer is made for every request."""
NEWER_COUNT_TIMEOUT_SECONDS = 0.005
"""How long a request that has an older number waits for a newer one."""
REST_FACTOR = 20
"""Pause after a longer count, as a multiple of its duration: counts take at most 5 % of a core."""

log = get_logger(__name__)

T = TypeVar("T")


class CachedCount(Generic[T]):
    """One number, or several that are counted together; one count at a time."""

    def __init__(self, count: Callable[[], Awaitable[T]]) -> None:
        self._count = count
        self._counting: asyncio.Future[T] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: T | None = None
        self._known = False
        self._good_until = 0.0

    async def get(self) -> T:
        """Return the number.

        Raises:
            Exception: the one that counting raised while this call waited for it.
        """
        if self._known and monotonic() < self._good_until:
            return self._last  # type: ignore[return-value] # None may be what was counted
        if self._counting is None:
            self._counting = asyncio.get_running_loop().create_future()
            self._counting.add_done_callback(_retrieve)
            spawn(self._run(self._counting), self._tasks, "counting")
        counting = self._counting
        if self._known:
            await asyncio.wait([counting], timeout=NEWER_COUNT_TIMEOUT_SECONDS)
            if not counting.done():
                return self._last  # type: ignore[return-value]
        # Shielded: others may wait for the same count.
        return await asyncio.shield(counting)

    async def _run(self, counting: "asyncio.Future[T]") -> None:
        began = monotonic()
        try:
            self._last = await self._count()
            self._known = True
            took = monotonic() - began
            if took > QUICK_SECONDS:
                self._good_until = monotonic() + REST_FACTOR * took
            counting.set_result(self._last)
        except Unavailable as error:
            counting.set_exception(error)
            log.warning("could not count; showing the previous numbers", reason=str(error))
        except Exception as error:
            counting.set_exception(error)
            raise
        finally:
            self._counting = None
            counting.cancel()


def _retrieve(counting: "asyncio.Future[T]") -> None:
    """Mark the exception as retrieved, so that asyncio does not log it again."""
    if not counting.cancelled():
        counting.exception()
