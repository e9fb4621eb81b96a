"""The ledger: one row for each task, from the moment it was accepted to the end of its retention.

The functions that take a list are for `GroupCommit`: requests that arrive together are one call and one transaction.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.kinds import KINDS
from bellhop.contracts.outcomes import Outcome, State, TaskEvent
from bellhop.sql.bulk import insert_many, update_many
from bellhop.sql.database import Database
from services.gateway.acceptance import store as idempotency
from services.gateway.acceptance.store import IdempotencyKey
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.tables import attempts, tasks
from services.gateway.tasks.counts import CachedCount
from services.gateway.tasks.ended import live_entries
from services.gateway.tasks.messages import cancel_entry, request_entry
from services.gateway.tasks.pages import page_query
from services.gateway.tasks.progress import KEEP_FINAL, attempt_row, has_history, moved, next_state, state_after
from services.gateway.tasks.reactions import create_reactions
from services.gateway.tasks.rows import TaskMove, TaskPlace, TaskRow, ended

Applied = Callable[[AsyncConnection, list[Outcome]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Everything that one request writes."""

    answer: bytes
    """The JSON of the answer, also for repetitions of the request."""
    tasks: list[TaskRow] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    key: IdempotencyKey | None = None
    claimed: bool = True
    """Whether this process publishes the entries itself, right after the commit."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The result of an acceptance."""

    answer: bytes
    new: bool
    """False: the same request was accepted before, and nothing was written now."""
    conflict: bool = False
    """True: another request was accepted before under the same key."""
    goes_out: bool = True
    """False: its messages were not kept, because their address is suppressed."""


async def locked_tasks(connection: AsyncConnection, task_ids: Iterable[str]) -> dict[str, TaskRow]:
    """Return tasks by id, locked until the end of the transaction (SQLite has one writer anyway)."""
    # In the same order everywhere, to avoid deadlocks.
    query = sa.select(tasks).where(tasks.c.id.in_(set(task_ids))).order_by(tasks.c.id).with_for_update()
    return {row["id"]: cast(TaskRow, dict(row)) for row in (await connection.execute(query)).mappings()}


async def accept(connection: AsyncConnection, items: list[Acceptance]) -> list[Accepted]:
    """Write tasks, messages and idempotency keys, each request whole or not at all."""
    keyed = [(item.key, item.answer) for item in items if item.key is not None]
    stored = {}
    if keyed:
        keys, answers = zip(*keyed, strict=True)
        stored = await idempotency.store(connection, keys, answers, 202)
    results: list[Accepted] = []
    fresh: list[Acceptance] = []
    for item in items:
        if item.key is not None:
            first = stored[item.key.owner, item.key.key]
            if first.id != item.key.id:
                conflict = first.fingerprint != item.key.fingerprint
                results.append(Accepted(first.answer, new=False, conflict=conflict))
                continue
        fresh.append(item)
        results.append(Accepted(item.answer, new=True))
    await insert_many(connection, tasks, [row for item in fresh for row in item.tasks])
    for claimed in (True, False):
        entries = [entry for item in fresh if item.claimed is claimed for entry in item.entries]
        await outbox.add(connection, entries, claimed=claimed)
    return results


class Ledger:
    """The store behind `/v1/tasks`."""

    def __init__(self, database: Database, applied: Applied | None = None) -> None:
        """`applied` is called with every list of outcomes, in the transaction that applies them."""
        self._database = database
        self._applied = applied
        self._counts = CachedCount(self._count)
        self._oldest = CachedCount(self._query_oldest)

    async def apply(self, connection: AsyncConnection, outcomes: list[Outcome]) -> list[str]:
        """Apply outcomes of workers, in any order and as often as they come; return the ids of their tasks."""
        await self._apply(connection, outcomes)
        return [outcome.task_id for outcome in outcomes]

    async def end(self, connection: AsyncConnection, outcomes: list[Outcome]) -> None:
        """Apply final outcomes that this gateway decided; those that advance their task are shown live."""
        await outbox.add(connection, live_entries(await self._apply(connection, outcomes)))

    async def _apply(self, connection: AsyncConnection, outcomes: list[Outcome]) -> list[TaskPlace]:
        """Apply outcomes; return the task of each outcome that advanced it, with the reply."""
        await create_reactions(self._database, connection, outcomes)
        places = await self._places(connection, {outcome.task_id for outcome in outcomes})
        changes: dict[str, TaskMove] = {}
        advanced: list[TaskPlace] = []
        for outcome in outcomes:
            place = places.get(outcome.task_id)
            if place is not None and (state := next_state(place, outcome)) is not None:
                changes[outcome.task_id] = moved(place, outcome, state)
                places[outcome.task_id] = {**place, **changes[outcome.task_id]}
                advanced.append({**places[outcome.task_id], "reply": outcome.reply})
        await update_many(connection, tasks, "id", list(changes.values()))
        made = [attempt_row(outcome) for outcome in outcomes if has_history(outcome) and outcome.task_id in places]
        await insert_many(connection, attempts, made, on_conflict=KEEP_FINAL)
        if self._applied is not None:
            await self._applied(connection, outcomes)
        return advanced

    async def _places(self, connection: AsyncConnection, task_ids: set[str]) -> dict[str, TaskPlace]:
        """Return the states of tasks, and lock them until the end of the transaction (SQLite has one writer anyway)."""
        columns = (
            tasks.c.id, tasks.c.round, tasks.c.attempt, tasks.c.state, tasks.c.uncertain,
            tasks.c.kind, tasks.c.owner, tasks.c.lane, tasks.c.recipient, tasks.c.template,
        )  # fmt: skip
        # In the same order everywhere, to avoid deadlocks.
        query = sa.select(*columns).where(tasks.c.id.in_(task_ids)).order_by(tasks.c.id).with_for_update()
        return {row["id"]: cast(TaskPlace, dict(row)) for row in (await connection.execute(query)).mappings()}

    async def get(self, task_id: str, owner: str | None = None) -> TaskRow | None:
        """Return the task with its attempts; None where there is none, or it belongs to another client."""
        async with self._database.read() as connection:
            query = sa.select(tasks).where(tasks.c.id == task_id)
            if owner is not None:
                query = query.where(tasks.c.owner == owner)
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            made = await connection.execute(
                sa.select(attempts).where(attempts.c.task_id == task_id).order_by(attempts.c.round, attempts.c.attempt)
            )
            return cast(TaskRow, {**row, "attempts": [dict(attempt) for attempt in made.mappings()]})

    async def page(
        self,
        *,
        owner: str | None,
        state: str | None = None,
        kinds: Sequence[str] | None = None,
        event_id: str | None = None,
        event_source: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[TaskRow]:
        """Return tasks, newest first, without attempts and documents.

        `kinds`: None is all. `before`: when the last task of the page before was made, and its id.
        """
        query = page_query(
            owner=owner,
            state=state,
            kinds=kinds,
            event_id=event_id,
            event_source=event_source,
            before=before,
            limit=limit,
        )
        async with self._database.read() as connection:
            return [cast(TaskRow, dict(row)) for row in (await connection.execute(query)).mappings()]

    async def cancel(self, connection: AsyncConnection, items: list[str]) -> list[State]:
        """Cancel tasks; return the state of each: `cancelled`, or another one, which shows why it is not yet.

        A task whose message is certainly still in the outbox is cancelled. If the worker may have the task, it is
        asked to cancel it, and the outcome shows which was first.
        """
        locked = await locked_tasks(connection, items)
        return [await self._cancel_one(connection, locked[task_id]) for task_id in items]

    async def _cancel_one(self, connection: AsyncConnection, task: TaskRow) -> State:
        cancelled = state_after(task, TaskEvent.CANCELLED)
        if cancelled is None:
            return State(task["state"])
        current = now_ms()
        if await outbox.withdraw(connection, task["id"]):
            over = {"state": cancelled.value, "updated_at": current, "finished_at": current}
            await connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(over))
            await outbox.add(connection, live_entries([ended(task, cancelled, current)]))
            return cancelled
        # Recorded, so that a task that is published again later is not sent instead.
        await connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(cancel_requested_at=current))
        await outbox.add(connection, [cancel_entry(task["kind"], task["id"], task["round"])])
        return State(task["state"])

    async def retry(self, connection: AsyncConnection, items: list[str]) -> list[State]:
        """Begin another round of tasks that ended without being sent; return the state of each."""
        locked = await locked_tasks(connection, items)
        return [await self._retry_one(connection, locked[task_id]) for task_id in items]

    async def _retry_one(self, connection: AsyncConnection, task: TaskRow) -> State:
        queued = state_after(task, TaskEvent.RETRY)
        if queued is None or task["document"] is None:
            return State(task["state"])
        document = orjson.loads(task["document"]) | {"round": task["round"] + 1}
        packed = orjson.dumps(document)
        task |= {"state": queued.value}
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.id == task["id"])
            .values(state=queued.value, round=document["round"], attempt=0, updated_at=now_ms(),
                    finished_at=None, document=packed, cancel_requested_at=None)
        )  # fmt: skip
        await outbox.add(connection, [request_entry(KINDS[task["kind"]], document, packed)])
        return queued

    async def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers."""
        await self._database.ping()

    async def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state, as of the last count (`counts.py`)."""
        return await self._counts.get()

    async def _count(self) -> dict[str, int]:
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(tasks.c.state, sa.func.count()).group_by(tasks.c.state))
            return dict(found.all())

    async def oldest_waiting(self) -> dict[str, int]:
        """Return for each lane since when its oldest queued task waits (milliseconds since 1970), as of the last count.

        A queued task is as old as its last change.
        """
        return await self._oldest.get()

    async def _query_oldest(self) -> dict[str, int]:
        async with self._database.read() as connection:
            found = await connection.execute(
                sa.select(tasks.c.lane, sa.func.min(tasks.c.updated_at))
                .where(tasks.c.state == State.QUEUED.value)
                .group_by(tasks.c.lane)
            )
            return dict(found.all())
