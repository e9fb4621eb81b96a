"""The inbox of a worker: which tasks were begun, by which replica, and how they ended.

A claim is committed before the work begins, and its result after it. So a replica that gets the task again (a
redelivery, or a second copy of the message) finds one of these:

    no row                           run
    retry pending                    the last attempt failed and was reported: run, if this is a later attempt
    claimed by a live replica        in progress: claim again later
    claimed by a crashed replica     the work may have been done: run again, and report it as `uncertain`
    finished, cancelled              report it again, do no work

A cancel that arrives while a claim is held is stored in its row (`cancel_requested`). When the attempt fails, the row
becomes cancelled instead of waiting for the next attempt.

Heartbeats show which replicas are alive (`heartbeats.py`). All stored times are those of the database's clock, which
all replicas share.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import BACKGROUND_SECONDS, Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.tasks.claims import Claim, ClaimDecision, InboxState, Key, Result
from bellhop.tasks.heartbeats import Heartbeats
from bellhop.tasks.statements import Statements, record_values, sqlite_insert, sqlite_record, take_over_values
from bellhop.tasks.tables import InboxTables

DELETED_PER_TRANSACTION = 2000
DELETE_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Request:
    key: Key
    attempt: int


class Inbox:
    """The inbox, as seen by one replica."""

    def __init__(self, database: Database, tables: InboxTables, owner: str) -> None:
        """`owner` must be new for each process: a restarted container often has its old name and process id."""
        self._database = database
        self._table = tables.tasks
        self._statements = Statements(tables.tasks)
        self._heartbeats = Heartbeats(database, tables.replicas, owner)
        self._writer = GroupCommit(database)
        self._owner = owner
        self._late: dict[Key, Result] = {}
        insert = database.insert(self._table).values(created_at=database.clock)
        self._insert = insert.on_conflict_do_nothing().returning(self._table.c.task_id, self._table.c.round)

    async def close(self) -> None:
        """Write what is waiting, then release all claims for other replicas."""
        await self._write_late()
        await self._writer.close()
        await self._heartbeats.end()

    @property
    def fresh(self) -> bool:
        """Return whether this replica is alive for the others; if not, they may take over its claims."""
        return self._heartbeats.fresh

    async def beat(self) -> None:
        """Write a heartbeat, then the results that could not be stored before.

        Raises:
            DatabaseUnavailable: the heartbeat, or some result, is not stored.
        """
        await self._heartbeats.beat()
        await self._write_late()

    async def claim(self, key: Key, attempt: int) -> Claim:
        """Ask to make attempt number `attempt` of a task. Committed on return.

        Raises:
            DatabaseUnavailable: the claim may or may not be committed.
        """
        if key in self._late:
            await self._write_late()
        return await self._writer.write(self._claim, _Request(key, attempt))

    async def record(self, result: Result) -> InboxState:
        """Store the result of a claim; return the state of the row. Committed on return.

        Where a cancel was stored during the attempt, the row of a failed attempt is cancelled.

        Raises:
            DatabaseUnavailable: the result may or may not be committed.
        """
        if result.state is InboxState.RETRY_PENDING:
            return await self._writer.write(self._record_failed, result)
        return await self._writer.write(self._record, result)

    def record_late(self, result: Result) -> None:
        """Store the result of a claim when the database is available again: with the next heartbeat or claim.

        Otherwise this process would hold the claim until its end, and the work would be done a second time.
        """
        self._late[result.key] = result

    async def _write_late(self) -> None:
        for key, result in list(self._late.items()):
            await self.record(result)
            if self._late.get(key) is result:
                del self._late[key]

    async def cancel(self, key: Key) -> Claim:
        """Cancel a task, or store the request until its attempt has ended. Idempotent; committed on return.

        The decision is `FINISHED` where no attempt follows, with the outcome of a task that had finished before, and
        `IN_PROGRESS` while an attempt is under way.
        """
        return await self._writer.write(self._cancel, key)

    # These take a batch, inside the transaction of the group commit.

    async def _claim(self, connection: AsyncConnection, requests: list[_Request]) -> list[Claim]:
        inserted = await self._insert_new(
            connection, [(request.key, InboxState.CLAIMED, request.attempt) for request in requests]
        )
        if len(inserted) == len(requests):
            return [Claim(ClaimDecision.RUN)] * len(requests)
        rows = await self._rows(connection, [request.key for request in requests if request.key not in inserted])
        alive = await self._heartbeats.alive(connection)
        claims = []
        for request in requests:
            row = rows.get(request.key)
            claims.append(Claim(ClaimDecision.RUN) if row is None else self._decide(row, request.attempt, alive))
        taken = [
            take_over_values(request.key, InboxState.CLAIMED, request.attempt, self._owner, claim.uncertain)
            for request, claim in zip(requests, claims, strict=True)
            if claim.decision is ClaimDecision.RUN and request.key not in inserted
        ]
        taken += [
            take_over_values(request.key, InboxState.CANCELLED, claim.attempt, None, claim.uncertain)
            for request, claim in zip(requests, claims, strict=True)
            if claim.decision is ClaimDecision.FINISHED and rows[request.key].state == InboxState.CLAIMED
        ]
        if taken:
            await connection.execute(self._statements.take_over, taken)
        return claims

    def _decide(self, row: Any, attempt: int, alive: set[str]) -> Claim:
        if row.state == InboxState.FINISHED:
            return Claim(ClaimDecision.FINISHED, row.uncertain, row.attempt, row.outcome)
        if row.state == InboxState.CANCELLED:  # what was reported last, if anything, was a failed attempt
            return Claim(ClaimDecision.FINISHED, row.uncertain, row.attempt)
        if row.state == InboxState.RETRY_PENDING:
            decision = ClaimDecision.RUN if attempt > row.attempt else ClaimDecision.ALREADY_ATTEMPTED
            return Claim(decision, row.uncertain, row.attempt, row.outcome)
        # This process never claims a task twice at the same time, so our own claim is one whose result was lost.
        if row.owner != self._owner and row.owner in alive:
            return Claim(ClaimDecision.IN_PROGRESS)
        if row.cancel_requested:
            return Claim(ClaimDecision.FINISHED, True, row.attempt)
        return Claim(ClaimDecision.RUN, uncertain=True, attempt=row.attempt)

    async def _record(self, connection: AsyncConnection, results: list[Result]) -> list[InboxState]:
        if self._database.dialect == "sqlite":
            await self._record_sqlite(connection, results)
            return [result.state for result in results]
        await connection.execute(self._statements.record, [record_values(result, self._owner) for result in results])
        return [result.state for result in results]

    async def _record_failed(self, connection: AsyncConnection, results: list[Result]) -> list[InboxState]:
        """Store failed attempts; one statement each, which returns whether a cancel was stored meanwhile."""
        states = [result.state for result in results]
        # In the order in which `_rows` locks, so that two replicas never wait for each other.
        for index, result in sorted(enumerate(results), key=lambda pair: pair[1].key):
            changed = await connection.execute(
                sa.update(self._table)
                .where(
                    self._table.c.task_id == result.key[0],
                    self._table.c.round == result.key[1],
                    self._table.c.owner == self._owner,
                )
                .values(
                    state=sa.case(
                        (self._table.c.cancel_requested, InboxState.CANCELLED.value),
                        else_=InboxState.RETRY_PENDING.value,
                    ),
                    attempt=result.attempt,
                    owner=None,
                    uncertain=result.uncertain,
                    outcome=result.outcome,
                )
                .returning(self._table.c.state)
            )
            # No row: another replica took us for dead, holds the task now, and will end it.
            states[index] = InboxState(changed.scalar_one_or_none() or result.state)
        return states

    async def _record_sqlite(self, connection: AsyncConnection, results: list[Result]) -> None:
        """Do what `Statements.record` does, in one statement."""
        values: list[object] = []
        for one in results:
            values += one.key
            values += (one.state is InboxState.FINISHED, one.state.value, one.attempt, one.uncertain, one.outcome)
        await connection.exec_driver_sql(sqlite_record(self._table.name, len(results)), (*values, self._owner))

    async def _cancel(self, connection: AsyncConnection, keys: list[Key]) -> list[Claim]:
        inserted = await self._insert_new(connection, [(key, InboxState.CANCELLED, 0) for key in dict.fromkeys(keys)])
        rows = await self._rows(connection, [key for key in keys if key not in inserted])
        answers, changed, held = [], [], []
        for key in keys:
            row = rows.get(key)
            if row is None:
                answers.append(Claim(ClaimDecision.FINISHED))
            elif row.state == InboxState.RETRY_PENDING:  # between two attempts: the next one need not begin
                answers.append(Claim(ClaimDecision.FINISHED, row.uncertain, row.attempt))
                changed.append(take_over_values(key, InboxState.CANCELLED, row.attempt, None, row.uncertain))
            elif row.state == InboxState.CANCELLED:
                answers.append(Claim(ClaimDecision.FINISHED, row.uncertain, row.attempt))
            elif row.state == InboxState.CLAIMED:
                answers.append(Claim(ClaimDecision.IN_PROGRESS))
                held.append({"b_task_id": key[0], "b_round": key[1]})
            else:
                answers.append(Claim(ClaimDecision.FINISHED, row.uncertain, row.attempt, row.outcome))
        if changed:
            await connection.execute(self._statements.take_over, changed)
        if held:
            await connection.execute(self._statements.request_cancel, held)
        return answers

    async def _insert_new(self, connection: AsyncConnection, wanted: list[tuple[Key, InboxState, int]]) -> set[Key]:
        """Insert rows for the keys that have none, and return those keys."""
        rows = [
            {
                "task_id": key[0],
                "round": key[1],
                "state": state.value,
                "attempt": attempt,
                "owner": self._owner if state is InboxState.CLAIMED else None,
                "uncertain": False,
                "outcome": None,
            }
            # In one order everywhere: two replicas that insert the same keys crosswise would deadlock in PostgreSQL.
            for key, state, attempt in sorted(wanted, key=lambda each: each[0])
        ]
        inserted: Any
        if self._database.dialect == "sqlite":
            values = tuple(value for row in rows for value in row.values())
            inserted = await connection.exec_driver_sql(sqlite_insert(self._table.name, len(rows)), values)
        else:
            inserted = await connection.execute(self._insert, rows)
        return {(task_id, round_) for task_id, round_ in inserted}

    async def _rows(self, connection: AsyncConnection, keys: list[Key]) -> dict[Key, Any]:
        if not keys:
            return {}
        found = await connection.execute(
            sa.select(self._table)
            .where(self._table.c.task_id.in_({task_id for task_id, _ in keys}))
            .order_by(self._table.c.task_id, self._table.c.round)
            .with_for_update()
        )
        return {(row.task_id, row.round): row for row in found}

    # Retention

    async def delete_old(self, days: float) -> int:
        """Delete rows older than `days`, and old heartbeats; return how many rows of tasks were deleted.

        One transaction deletes at most `DELETED_PER_TRANSACTION` rows, so that claims can be made meanwhile.
        """
        deleted = 0
        while some := await self._delete_some(days):
            deleted += some
            await asyncio.sleep(DELETE_PAUSE_SECONDS)
        await self._heartbeats.delete_old()
        return deleted

    async def _delete_some(self, days: float) -> int:
        async with self._database.write(BACKGROUND_SECONDS) as connection:
            key = (self._table.c.task_id, self._table.c.round)
            before = self._database.clock - days * 86_400
            old = sa.select(*key).where(self._table.c.created_at < before).order_by(self._table.c.created_at)
            # Another replica that deletes at the same time takes other rows.
            rows = await connection.execute(old.limit(DELETED_PER_TRANSACTION).with_for_update(skip_locked=True))
            keys = [(task_id, round_) for task_id, round_ in rows]
            if keys:
                await connection.execute(sa.delete(self._table).where(sa.tuple_(*key).in_(keys)))
            return len(keys)
