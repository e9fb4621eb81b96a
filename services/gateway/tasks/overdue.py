"""Tasks that have waited too long for an outcome: their messages are published again, and the worker reports again.

A message or an outcome can be lost with a queue of the broker. The worker's inbox has every task that it began. So it
answers an unneeded copy with the stored outcome, and does nothing twice. A task that still waits in a
long queue gets copies at growing intervals: after the limit, then after twice, four times, … as long.

The open tasks are read in the order of their index, in batches, so that a step costs the same for any number of tasks.
"""

from collections import Counter
from typing import cast

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.kinds import KINDS
from bellhop.contracts.outcomes import State
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, clock_ms
from services.gateway.broadcasts.dispatching import TaskMaker
from services.gateway.broadcasts.store import OPEN, WHOLE, Phase, WholeBroadcastRow, whole_broadcast
from services.gateway.outbox import store as outbox
from services.gateway.outbox.publisher import OutboxPublisher
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.tables import attempts, broadcasts, tasks
from services.gateway.tables import outbox as outbox_table
from services.gateway.tasks.messages import cancel_entry, request_entry
from services.gateway.tasks.rows import TaskRow

BATCH = 500
BATCH_PAUSE_SECONDS = 0.5
ROUND_SECONDS = 60.0
LONGEST_MS = 24 * 3_600_000
"""Maximum interval between two copies of a task."""
MAX_WAITING = 10_000
"""With more messages in the outbox the broker is too slow, and tasks wait for that reason."""

log = get_logger(__name__)


def due_at(since: int, republished_at: int | None, limit_ms: int) -> int:
    """Return when the next copy of a message is due, of a task that has waited `since` then; all in milliseconds."""
    if republished_at is None or republished_at < since:
        return since + limit_ms
    return republished_at + min(max(republished_at - since, limit_ms), LONGEST_MS)


class StaleTasks:
    """Publishes the messages of tasks again that have waited too long."""

    def __init__(
        self, database: Database, maker: TaskMaker, outbox_publisher: OutboxPublisher, limit_seconds: float
    ) -> None:
        """`limit_seconds`: how long a task may wait, after its last change or the time of its next attempt."""
        self._database = database
        self._maker = maker
        self._outbox_publisher = outbox_publisher
        self._limit_ms = round(limit_seconds * 1000)
        self._after: dict[State, tuple[int, str]] = {}

    async def round(self) -> float:
        """Check a batch of the tasks of each open state; return the seconds until the next batch."""
        rest = min(ROUND_SECONDS, self._limit_ms / 4000)
        if not self._outbox_publisher.is_available or self._outbox_publisher.waiting > MAX_WAITING:
            return rest
        more = [await self._check_batch(state) for state in OPEN]
        return min(BATCH_PAUSE_SECONDS, rest) if any(more) else rest

    async def _check_batch(self, state: State) -> bool:
        """Check the next tasks in a state; return whether there are more."""
        last = sa.and_(attempts.c.round == tasks.c.round, attempts.c.attempt == tasks.c.attempt)
        query = (
            sa.select(tasks.c.id, tasks.c.created_at, tasks.c.updated_at, tasks.c.republished_at, attempts.c.retry_at)
            .outerjoin(attempts, sa.and_(attempts.c.task_id == tasks.c.id, last))
            .where(tasks.c.state == state.value, tasks.c.created_at <= now_ms() - self._limit_ms)
            .order_by(tasks.c.created_at, tasks.c.id)
            .limit(BATCH)
        )
        if (after := self._after.get(state)) is not None:
            query = query.where(sa.tuple_(tasks.c.created_at, tasks.c.id) > sa.tuple_(*after))
        async with self._database.read() as connection:
            rows = (await connection.execute(query)).all()
            current = await clock_ms(connection)
        stale = [
            row.id
            for row in rows
            if current >= due_at(max(row.updated_at, row.retry_at or 0), row.republished_at, self._limit_ms)
        ]
        if stale:
            async with self._database.write() as connection:
                await self._republish(connection, state, stale)
        if len(rows) < BATCH:
            self._after.pop(state, None)
            return False
        self._after[state] = (rows[-1].created_at, rows[-1].id)
        return True

    async def _republish(self, connection: AsyncConnection, state: State, ids: list[str]) -> None:
        """Write messages for tasks that still are in this state, and in no outbox."""
        waiting = sa.exists().where(outbox_table.c.task_id == tasks.c.id)
        # A newer version may have made tasks of a kind that this one does not know.
        known = tasks.c.kind.in_(list(KINDS))
        query = sa.select(tasks).where(tasks.c.id.in_(ids), tasks.c.state == state.value, known, ~waiting)
        # Another replica, or an outcome, has locked the others.
        locked = query.order_by(tasks.c.id).with_for_update(skip_locked=True, of=tasks)
        rows = [cast(TaskRow, dict(row)) for row in (await connection.execute(locked)).mappings()]
        # Another replica may have published them since the read.
        current = await clock_ms(connection)
        recently = current - self._limit_ms
        rows = [row for row in rows if (row["republished_at"] or 0) <= recently]
        entries = await self._entries(connection, rows)
        if not rows:
            return
        await connection.execute(
            sa.update(tasks).where(tasks.c.id.in_([row["id"] for row in rows])).values(republished_at=current)
        )
        await outbox.add(connection, entries, maybe_delivered=True)
        kinds = Counter(entry.routing_key for entry in entries)
        log.warning("no outcome came in time; asking the worker again", state=state.value, **kinds)

    async def _entries(self, connection: AsyncConnection, rows: list[TaskRow]) -> list[Entry]:
        ids = {row["broadcast_id"] for row in rows if row["broadcast_id"] is not None}
        found = await connection.execute(sa.select(*WHOLE).where(broadcasts.c.id.in_(ids)))
        owners = {owner.id: owner for owner in map(whole_broadcast, found)}
        entries: list[Entry] = []
        by_broadcast: dict[str, list[TaskRow]] = {}
        for row in rows:
            owner = owners.get(row["broadcast_id"] or "")
            if row["cancel_requested_at"] is not None or (owner and owner.state == Phase.CANCELLING):
                entries.append(cancel_entry(row["kind"], row["id"], row["round"]))
            elif owner is not None:
                if owner.state == Phase.RUNNING:
                    by_broadcast.setdefault(owner.id, []).append(row)
            elif row["document"] is not None:
                entries.append(
                    request_entry(
                        KINDS[row["kind"]], orjson.loads(row["document"]), row["document"], attempt=_next_attempt(row)
                    )
                )
        for owner_id, some in by_broadcast.items():
            entries += await self._broadcast_entries(connection, owners[owner_id], some)
        return entries

    async def _broadcast_entries(
        self, connection: AsyncConnection, owner: WholeBroadcastRow, rows: list[TaskRow]
    ) -> list[Entry]:
        made = await self._maker.messages(connection, owner, {row["id"]: _next_attempt(row) for row in rows}, rows)
        # People who left the list meanwhile are not mailed; the worker knows whether they were before.
        return [made.get(row["id"]) or cancel_entry(row["kind"], row["id"], row["round"]) for row in rows]


def _next_attempt(row: TaskRow) -> int:
    """Return the attempt that the worker's inbox allows."""
    attempt: int = row["attempt"]
    return attempt + 1
