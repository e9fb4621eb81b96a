"""Mail that waits for people who get none any more: those who left a list, and suppressed addresses.

A mail may wait for hours on the retry ladder, or for a month until its `send_at`. So an address that gets no mail any
more is written down here, in the commit that says so, and a loop ends the tasks that wait for it: what is certainly in
the outbox immediately, the rest by asking the mailer, which begins no task that it was asked to cancel.

Each row is looked at twice, immediately and after `SETTLE_MS`: a task that was accepted at the same moment may be
committed after the first look.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from services.gateway.store import ledger, outbox
from services.gateway.store.outbox import now_ms
from services.gateway.store.suppressions import active, ended_attempt
from services.gateway.store.tables import attempts, broadcasts, subscriptions, suppressions, tasks, withdrawals

SETTLE_MS = 15_000
CHUNK = 100

UNSUBSCRIBED = "This person is no longer subscribed to the list."


class Withdrawals:
    """Ends what waits for people who get no mail any more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def step(self) -> list[str] | None:
        """Look at some rows; return the ids of the tasks that ended now, None where there is nothing to look at.

        Safe to repeat and to run in several gateways at the same time.
        """
        async with self._database.write() as connection:
            rows = await _take(connection)
            if not rows:
                return None
            ended: list[str] = []
            for row in rows:
                ended += await _end_waiting(connection, row)
            taken = withdrawals.c.sequence.in_([row["sequence"] for row in rows])
            await connection.execute(sa.delete(withdrawals).where(taken, withdrawals.c.looks > 0))
            await connection.execute(sa.update(withdrawals).where(taken).values(looks=1, due_at=now_ms() + SETTLE_MS))
            return ended


async def _take(connection: AsyncConnection) -> list[Any]:
    due = sa.select(withdrawals).where(withdrawals.c.due_at <= now_ms()).order_by(withdrawals.c.due_at).limit(CHUNK)
    query = due.with_for_update(skip_locked=True)
    return list((await connection.execute(query)).mappings())


async def _end_waiting(connection: AsyncConnection, row: Any) -> list[str]:
    reason = await _reason(connection, row)
    if reason is None:  # the address may have mail again
        return []
    waiting = sa.select(tasks.c.id).where(tasks.c.address == row["address"], tasks.c.finished_at.is_(None))
    if row["list"] is not None:
        of_list = sa.select(broadcasts.c.id).where(broadcasts.c.list == row["list"])
        waiting = waiting.where(tasks.c.broadcast_id.in_(of_list))
    ids = list((await connection.execute(waiting)).scalars())
    locked = await ledger.locked_tasks(connection, ids) if ids else {}
    still_waiting = [task for task in locked.values() if task["finished_at"] is None]
    return [task["id"] for task in still_waiting if await _end(connection, task, reason)]


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


async def _end(connection: AsyncConnection, task: dict[str, Any], reason: str) -> bool:
    """End a task that has not begun, or ask the mailer to; say whether it ended."""
    if not await outbox.withdraw(connection, task["id"]):
        request = ledger.cancel_entry(task["id"], task["round"], state=State.SUPPRESSED, reason=reason)
        await outbox.add(connection, [request])
        asked = sa.update(tasks).where(tasks.c.id == task["id"]).values(cancel_requested_at=now_ms())
        await connection.execute(asked)
        return False
    current = now_ms()
    task |= {"state": State.SUPPRESSED.value, "updated_at": current, "finished_at": current}
    changed = {name: task[name] for name in ("state", "updated_at", "finished_at")}
    await connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(changed))
    row = ended_attempt(task, reason) | {"at": current}
    await insert_many(connection, attempts, [row], on_conflict="DO NOTHING")
    return True
