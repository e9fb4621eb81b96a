"""Runs broadcasts. Every replica does so; row locks decide which replica makes a step.

Only as many tasks of a broadcast are open as are sent within some seconds. So a pause takes effect within seconds, an
unavailable broker does not fill the outbox, and a million recipients need no more memory than a thousand.
"""

import asyncio
from collections import deque
from time import monotonic

from bellhop import faults
from bellhop.contracts.outcomes import State
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseUnavailable
from services.gateway.broadcasts import dispatching
from services.gateway.broadcasts.dispatching import DispatchStep
from services.gateway.broadcasts.store import BroadcastRow, Broadcasts, Phase
from services.gateway.outbox.publisher import OutboxPublisher
from services.gateway.outbox.store import now_ms
from services.gateway.suppressions.store import SuppressionStore

IDLE_SECONDS = 0.5
BUSY_SECONDS = 0.05
REFRESH_SECONDS = 1.0
ROUND_SECONDS = 120.0
"""Maximum duration of one step of each broadcast."""
AHEAD_SECONDS = 4.0
"""The open tasks of a broadcast should be sent within so many seconds."""
MIN_AHEAD = 20
"""Enough to measure the rate."""
AUDIENCE_PARTS = 10
LEAST_AHEAD = 5
"""At most this part of the recipients has open tasks, so that a pause is in time for most of a small list; but at
least `LEAST_AHEAD` have."""
RETRYING_FACTOR = 10
"""A task may wait for hours for its next attempt, and must not delay the others. A server that defers all mail must not
remove the limit: so many times the window may wait for an attempt."""
RATE_SECONDS = 10.0

log = get_logger(__name__)


class DispatchRate:
    """The rate of a broadcast in the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, done: int, at: float) -> None:
        """Note that `done` recipients were done at the time `at` (seconds)."""
        if self._samples and done < self._samples[-1][1]:
            self._samples.clear()  # some of them are to be retried
        while len(self._samples) > 1 and self._samples[0][0] < at - RATE_SECONDS:
            self._samples.popleft()
        if not self._samples or at - self._samples[-1][0] >= 0.2:
            self._samples.append((at, done))

    @property
    def rate(self) -> float:
        """Recipients a second."""
        if len(self._samples) < 2:
            return 0.0
        (began, before), (ended, after) = self._samples[0], self._samples[-1]
        return (after - before) / (ended - began)


class Dispatcher:
    """Runs all broadcasts that are neither finished nor cancelled."""

    def __init__(
        self,
        database: Database,
        store: Broadcasts,
        maker: dispatching.TaskMaker,
        suppressions: SuppressionStore,
        outbox_publisher: OutboxPublisher,
        window: int,
    ) -> None:
        self._database = database
        self._store = store
        self._maker = maker
        self._suppressions = suppressions
        self._outbox_publisher = outbox_publisher
        self._window = window
        self._meters: dict[str, DispatchRate] = {}
        self.woken = asyncio.Event()
        """Set when the next step should be made immediately."""
        self._refreshed = float("-inf")

    def wake(self) -> None:
        """Make the next step immediately, after a client's request."""
        self.woken.set()

    def rate(self, broadcast_id: str) -> float:
        """Return the recipients a second of a running broadcast."""
        meter = self._meters.get(broadcast_id)
        return 0.0 if meter is None else meter.rate

    async def step(self) -> float:
        """Do one step of each broadcast; return how many seconds until the next."""
        if monotonic() - self._refreshed > REFRESH_SECONDS:
            await self._suppressions.refresh()
            self._refreshed = monotonic()
        return BUSY_SECONDS if await self._round() else IDLE_SECONDS

    async def _round(self) -> bool:
        active = await self._store.active()
        for gone in self._meters.keys() - {row.id for row in active}:
            del self._meters[gone]
        return any([await self._try(row) for row in active])

    async def _try(self, row: BroadcastRow) -> bool:
        try:
            return await self._advance(row)
        except DatabaseUnavailable:
            raise
        except Exception:
            # The others continue. The failed step committed nothing, so it is repeated.
            log.exception("a step of a broadcast failed; trying again", broadcast=row.id)
            return False

    async def _advance(self, row: BroadcastRow) -> bool:
        """Make the next steps of one broadcast; return whether more may follow soon."""
        broadcast_id, phase = row.id, row.state
        if phase is Phase.SCHEDULED:
            if row.send_at is not None and row.send_at > now_ms():
                return False
            total = await self._store.size(row.list)
            async with self._database.write() as connection:
                await dispatching.begin(connection, broadcast_id, total)
            log.info("a broadcast begins", broadcast=broadcast_id, list=row.list, recipients=total)
            return True
        if phase is Phase.PAUSED:
            _, under_way = await self._store.under_way(broadcast_id)
            if any(under_way.values()):
                async with self._database.write() as connection:
                    await dispatching.hold(connection, broadcast_id)
            return False
        if phase is Phase.CANCELLING:
            return await self._cancel(broadcast_id)
        return await self._dispatch(row)

    async def _dispatch(self, row: BroadcastRow) -> bool:
        broadcast_id = row.id
        dispatched, under_way = await self._store.under_way(broadcast_id)
        meter = self._meters.setdefault(broadcast_id, DispatchRate())
        meter.note(dispatched - sum(under_way.values()), monotonic())
        room = self._room(under_way, meter.rate, row.total)
        made = 0
        while room > 0:
            step = await self._step(row, room)
            if not step.count:
                break
            room -= step.count
            made += step.count
        if not made and not any(under_way.values()):
            async with self._database.write() as connection:
                if await dispatching.conclude(connection, broadcast_id, Phase.RUNNING):
                    log.info("a broadcast is finished", broadcast=broadcast_id)
        # A task that waits for its next attempt waits for minutes.
        return made > 0 or under_way[State.QUEUED] > 0

    def _room(self, under_way: dict[str, int], rate: float, total: int) -> int:
        """Return how many more tasks may be open."""
        ahead = min(
            self._window, max(MIN_AHEAD, round(rate * AHEAD_SECONDS)), max(LEAST_AHEAD, total // AUDIENCE_PARTS)
        )
        return min(ahead - under_way[State.QUEUED], RETRYING_FACTOR * self._window - under_way[State.RETRYING])

    async def _step(self, row: BroadcastRow, room: int) -> DispatchStep:
        claimed = self._outbox_publisher.has_capacity
        dispatch = self._maker.dispatch if row.retry_after is None else self._maker.dispatch_failed
        async with self._database.write() as connection:
            step = await dispatch(connection, row.id, room, claimed=claimed)
            faults.point("broadcast.dispatched")
        faults.point("broadcast.committed")
        if claimed:
            self._outbox_publisher.hand_over(step.entries)
        return step

    async def _cancel(self, broadcast_id: str) -> bool:
        async with self._database.write() as connection:
            step = await dispatching.withdraw(connection, broadcast_id)
        if step.count:
            return True
        async with self._database.write() as connection:
            if await dispatching.conclude(connection, broadcast_id, Phase.CANCELLING):
                log.info("a broadcast is cancelled", broadcast=broadcast_id)
        return False
