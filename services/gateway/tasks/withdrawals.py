"""Withdraws waiting mail of people who unsubscribed from a list, and of suppressed addresses.

A mail may wait for hours in a retry queue, or for a month until its `send_at`. So an address that gets no more mail is
stored here, in the same commit, and a job ends the tasks that wait for it: those that are certainly in the outbox
immediately, the others by a request to the worker, which begins no task that it was asked to cancel.

Each row is read twice, immediately and after `SETTLE_MS`: a task that was accepted at the same moment may be
committed after the first read.

A step is short for any number of tasks: it ends up to `MAX_TASKS_A_STEP` of them, and the row is read again after the
others. A task that the worker was asked to cancel is not read again.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.kinds import KINDS
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import now_ms
from services.gateway.suppressions.store import active, ended_attempt
from services.gateway.tables import attempts, broadcasts, subscriptions, suppressions, tasks, withdrawals
from services.gateway.tables import outbox as outbox_table
from services.gateway.tasks import store as ledger
from services.gateway.tasks.ended import live_entries
from services.gateway.tasks.messages import cancel_entry
from services.gateway.tasks.rows import AttemptRow, TaskRow, ended

SETTLE_MS = 15_000
CHUNK = 100
MAX_TASKS_A_STEP = 500
"""Maximum number of tasks that one step ends."""

UNSUBSCRIBED = "This person is no longer subscribed to the list."


class Withdrawals:
    """Ends what waits for people who get no mail any more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def step(self) -> list[str] | None:
        """Process some rows; return the ids of the tasks that ended now, None if no row is due.

        Safe to repeat and to run in several gateways at the same time.
        """
        async with self._database.write() as connection:
            rows = await _lock_due(connection)
            if not rows:
                return None
            ended: list[str] = []
            done: list[int] = []
            room = MAX_TASKS_A_STEP
            for row in rows:
                found, gone = await _end_waiting(connection, row, room)
                ended += gone
                room -= found
                if room <= 0:
                    # There may be more of this one, and the rows after it were not read.
                    await _postpone(connection, row)
                    break
                done.append(row["sequence"])
            looked_at = withdrawals.c.sequence.in_(done)
            await connection.execute(sa.delete(withdrawals).where(looked_at, withdrawals.c.looks > 0))
            again = {"looks": 1, "due_at": now_ms() + SETTLE_MS}
            await connection.execute(sa.update(withdrawals).where(looked_at).values(again))
            return ended


async def _lock_due(connection: AsyncConnection) -> list[Any]:
    due = sa.select(withdrawals).where(withdrawals.c.due_at <= now_ms()).order_by(withdrawals.c.due_at).limit(CHUNK)
    query = due.with_for_update(skip_locked=True)
    return list((await connection.execute(query)).mappings())


async def _postpone(connection: AsyncConnection, row: Any) -> None:
    """Process a row again, after those that are already due."""
    mine = withdrawals.c.sequence == row["sequence"]
    await connection.execute(sa.update(withdrawals).where(mine).values(due_at=now_ms()))


async def _end_waiting(connection: AsyncConnection, row: Any, limit: int) -> tuple[int, list[str]]:
    """End up to `limit` tasks; return how many were found, and the ids of those that ended now."""
    reason = await _reason(connection, row)
    if reason is None:  # the address may have mail again
        return 0, []
    waiting = sa.select(tasks.c.id).where(
        tasks.c.address == row["address"],
        tasks.c.kind.in_(list(KINDS)),
        tasks.c.finished_at.is_(None),
        tasks.c.cancel_requested_at.is_(None),
    )
    if row["list"] is not None:
        of_list = sa.select(broadcasts.c.id).where(broadcasts.c.list == row["list"])
        waiting = waiting.where(tasks.c.broadcast_id.in_(of_list))
    ids = list((await connection.execute(waiting.limit(limit))).scalars())
    locked = await ledger.locked_tasks(connection, ids) if ids else {}
    still_waiting = [task for task in locked.values() if task["finished_at"] is None]
    return len(ids), await _end(connection, still_waiting, reason)


async def _reason(connection: AsyncConnection, row: Any) -> str | None:
    if row["list"] is None:
        query = sa.select(suppressions.c.reason).where(suppressions.c.address == row["address"], active())
        found = (await connection.execute(query)).scalar_one_or_none()
        return None if found is None else f"The address is suppressed: {found}"
    confirmed = sa.select(subscriptions.c.email).where(
        subscriptions.c.list == row["list"],
        subscriptions.c.email == row["address"],
        subscriptions.c.state == "confirmed",
    )
    return UNSUBSCRIBED if (await connection.execute(confirmed)).first() is None else None


async def _end(connection: AsyncConnection, waiting: list[TaskRow], reason: str) -> list[str]:
    """End the tasks that have not begun, and ask the workers to end the others; return the ids of those that ended."""
    ids = [task["id"] for task in waiting]
    here = outbox_table.c.task_id.in_(ids) & outbox.CERTAINLY_HERE
    deleted = await connection.execute(sa.delete(outbox_table).where(here).returning(outbox_table.c.task_id))
    gone = set(deleted.scalars())
    current = now_ms()
    over = {"state": State.SUPPRESSED.value, "updated_at": current, "finished_at": current}
    await connection.execute(sa.update(tasks).where(tasks.c.id.in_(gone)).values(over))
    over_now = [ended(task, State.SUPPRESSED, current) for task in waiting if task["id"] in gone]
    rows: list[AttemptRow] = [ended_attempt(task, reason) | {"at": current} for task in over_now]
    await insert_many(connection, attempts, rows, on_conflict="DO NOTHING")
    await outbox.add(connection, live_entries(over_now, reason))
    begun = [task for task in waiting if task["id"] not in gone]
    asked = sa.update(tasks).where(tasks.c.id.in_([task["id"] for task in begun]))
    await connection.execute(asked.values(cancel_requested_at=current))
    requests = [
        cancel_entry(task["kind"], task["id"], task["round"], state="suppressed", reason=reason) for task in begun
    ]
    await outbox.add(connection, requests)
    return [task["id"] for task in over_now]
