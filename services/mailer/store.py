"""The inbox: which tasks were begun, by whom, and what became of them. All SQL of the mailer.

A claim is committed before a mail goes out, and its result after. So whoever gets the task again (a redelivery, a
second copy of the message) knows one of these:

    nothing there           send
    waiting                 an earlier attempt failed and said so: send, if this is a later attempt
    claimed by the living   another replica is at it: hand the delivery back
    claimed by the dead     its owner crashed: an earlier copy may have gone out. Send again, and say `uncertain`
    done, cancelled         report it again, send nothing

A cancel that arrives while a claim is held is stored in its row (`cancel_requested`). When the attempt ends without
the mail having been sent, the row becomes cancelled instead of waiting for the next attempt.

Who lives is told by heartbeats and not by an expiry of each claim. A mail may rightly wait ten minutes for the reply
to its final dot; a claim that expired sooner would be sent twice, and one that expired later would hold a crashed
mail back for as long. A heartbeat is one small write every few seconds whatever the load, and a crash is noticed
within some `LEASE_SECONDS`.

No clock is compared with another for that: a replica watches the heartbeats of the others, and one whose heartbeat has
not changed for `LEASE_SECONDS` of the watcher's monotonic time is dead. So clocks may differ and may be set at any
time. The price is that a replica which has just started waits so long before it takes over what a crash left.
Everything else that is stored or compared as a time comes from the database's clock, which all replicas share.
"""

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import BACKGROUND_SECONDS, CLOCK_SQL, Database
from bellhop.sql.group_commit import GroupCommit

LEASE_SECONDS = 10.0
REPLICA_SECONDS = 86_400.0
"""So long a heartbeat is kept that has ended."""
FORGOTTEN_AT_ONCE = 2000
FORGET_PAUSE_SECONDS = 0.05

metadata = sa.MetaData()

inbox = sa.Table(
    "mailer_inbox",
    metadata,
    sa.Column("task_id", sa.String(255), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(255)),
    sa.Column("uncertain", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),  # Unix seconds by the database's clock
    sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Index("mailer_inbox_by_age", "created_at"),
    sqlite_with_rowid=False,
)

replicas = sa.Table(
    "mailer_replicas",
    metadata,
    sa.Column("owner", sa.String(255), primary_key=True),
    sa.Column("seen_at", sa.Double, nullable=False),  # Unix seconds by the database's clock
)

Key = tuple[str, int]
"""Task id and round."""


class Kept(StrEnum):
    """The state of a row."""

    CLAIMED = "claimed"
    WAITING = "waiting"
    DONE = "done"
    CANCELLED = "cancelled"


class Verb(StrEnum):
    """What a claim allows."""

    SEND = "send"
    HELD = "held"
    MADE = "made"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim."""

    verb: Verb
    uncertain: bool = False
    """An earlier copy may have gone out."""
    attempt: int = 0
    """The attempt that was made before; 0 where there was none."""
    outcome: str | None = None
    """What was reported about it, as JSON."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a claim."""

    key: Key
    state: Kept
    attempt: int
    uncertain: bool = False
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class _Wish:
    key: Key
    attempt: int


# The first attempt of a task is nearly all there is to do: one statement for a whole batch of them.
_RECORD = (
    sa.update(inbox)
    .where(
        inbox.c.task_id == sa.bindparam("b_task_id"),
        inbox.c.round == sa.bindparam("b_round"),
        # Somebody who took us for dead may be at it by now; only what is final still counts then.
        sa.or_(inbox.c.owner == sa.bindparam("b_owner"), sa.bindparam("b_final", type_=sa.Boolean)),
    )
    .values(
        state=sa.bindparam("b_state"),
        attempt=sa.bindparam("b_attempt"),
        owner=None,
        uncertain=sa.bindparam("b_uncertain"),
        outcome=sa.bindparam("b_outcome"),
    )
)
_TAKE_OVER = (
    sa.update(inbox)
    .where(inbox.c.task_id == sa.bindparam("b_task_id"), inbox.c.round == sa.bindparam("b_round"))
    .values(
        state=sa.bindparam("b_state"),
        attempt=sa.bindparam("b_attempt"),
        owner=sa.bindparam("b_owner"),
        uncertain=sa.bindparam("b_uncertain"),
    )
)

_CANCEL_LATER = (
    sa.update(inbox)
    .where(inbox.c.task_id == sa.bindparam("b_task_id"), inbox.c.round == sa.bindparam("b_round"))
    .values(cancel_requested=True)
)


class Inbox:
    """The inbox, as seen by one replica."""

    def __init__(self, database: Database, owner: str) -> None:
        """`owner` must be new for each process: a restarted container often has its old name and process id."""
        self._database = database
        self._writer = GroupCommit(database)
        self._owner = owner
        self._beaten_at = float("-inf")
        self._seen: dict[str, tuple[float, float]] = {}  # by owner: the last heartbeat, and since when we know it
        self._looked_at = float("-inf")
        self._late: dict[Key, Result] = {}
        insert = database.insert(inbox).values(created_at=database.clock)
        self._insert = insert.on_conflict_do_nothing().returning(inbox.c.task_id, inbox.c.round)

    async def close(self) -> None:
        """Write what is waiting, and let others have our claims at once."""
        await self._write_late()
        await self._writer.close()
        async with self._database.write() as connection:
            await connection.execute(sa.delete(replicas).where(replicas.c.owner == self._owner))

    async def claim(self, key: Key, attempt: int) -> Claim:
        """Ask to make attempt number `attempt` of a task. Committed on return."""
        if key in self._late:
            await self._write_late()
        return await self._writer.write(self._claim, _Wish(key, attempt))

    async def record(self, result: Result) -> Kept:
        """Store the result of a claim; return the state of the row. Committed on return.

        The state differs from the result's where a cancel was stored during the attempt: `waiting` becomes
        `cancelled`.
        """
        if result.state is Kept.WAITING:
            return await self._writer.write(self._record_waiting, result)
        return await self._writer.write(self._record, result)

    def record_late(self, result: Result) -> None:
        """Store the result of a claim as soon as the database is available again: with a heartbeat, or the next claim.

        Without it the claim would be held as long as this process lives, and the mail sent a second time.
        """
        self._late[result.key] = result

    async def _write_late(self) -> None:
        for key, result in list(self._late.items()):
            await self.record(result)
            if self._late.get(key) is result:
                del self._late[key]

    async def cancel(self, key: Key) -> Claim:
        """Cancel a task, or store the request until its attempt has ended. Idempotent; committed on return.

        The verb is `over` where no attempt follows, with the outcome where the task was done before, and `held` while
        an attempt is under way.
        """
        return await self._writer.write(self._cancel, key)

    # Claims and results, a batch at a time. They run inside the transaction of the group commit.

    async def _claim(self, connection: AsyncConnection, wishes: list[_Wish]) -> list[Claim]:
        inserted = await self._insert_new(connection, [(wish.key, Kept.CLAIMED, wish.attempt) for wish in wishes])
        if len(inserted) == len(wishes):
            return [Claim(Verb.SEND)] * len(wishes)
        rows = await self._rows(connection, [wish.key for wish in wishes if wish.key not in inserted])
        living = await self._living(connection)
        claims = []
        for wish in wishes:
            row = rows.get(wish.key)
            claims.append(Claim(Verb.SEND) if row is None else self._decide(row, wish.attempt, living))
        taken = [
            _take_over(wish.key, Kept.CLAIMED, wish.attempt, self._owner, claim.uncertain)
            for wish, claim in zip(wishes, claims, strict=True)
            if claim.verb is Verb.SEND and wish.key not in inserted
        ]
        taken += [
            _take_over(wish.key, Kept.CANCELLED, claim.attempt, None, claim.uncertain)
            for wish, claim in zip(wishes, claims, strict=True)
            if claim.verb is Verb.OVER and rows[wish.key].state == Kept.CLAIMED
        ]
        if taken:
            await connection.execute(_TAKE_OVER, taken)
        return claims

    def _decide(self, row: Any, attempt: int, living: set[str]) -> Claim:
        if row.state == Kept.DONE:
            return Claim(Verb.OVER, row.uncertain, row.attempt, row.outcome)
        if row.state == Kept.CANCELLED:  # what was reported last, if anything, was a failed attempt
            return Claim(Verb.OVER, row.uncertain, row.attempt)
        if row.state == Kept.WAITING:
            verb = Verb.SEND if attempt > row.attempt else Verb.MADE
            return Claim(verb, row.uncertain, row.attempt, row.outcome)
        # What this process has in hand never gets here twice, so a claim of our own is one whose end we lost.
        if row.owner != self._owner and row.owner in living:
            return Claim(Verb.HELD)
        if row.cancel_requested:
            return Claim(Verb.OVER, True, row.attempt)
        return Claim(Verb.SEND, uncertain=True, attempt=row.attempt)

    async def _record(self, connection: AsyncConnection, results: list[Result]) -> list[Kept]:
        if self._database.dialect == "sqlite":
            await self._record_at_once(connection, results)
            return [result.state for result in results]
        await connection.execute(
            _RECORD,
            [
                {
                    "b_task_id": result.key[0],
                    "b_round": result.key[1],
                    "b_owner": self._owner,
                    "b_final": result.state is Kept.DONE,
                    "b_state": result.state.value,
                    "b_attempt": result.attempt,
                    "b_uncertain": result.uncertain,
                    "b_outcome": result.outcome,
                }
                for result in results
            ],
        )
        return [result.state for result in results]

    async def _record_waiting(self, connection: AsyncConnection, results: list[Result]) -> list[Kept]:
        """Store failed attempts; few enough for a statement each, which tells whether a cancel was stored meanwhile."""
        states = [result.state for result in results]
        # In the order in which `_rows` locks, so that two replicas never wait for each other.
        for index, result in sorted(enumerate(results), key=lambda pair: pair[1].key):
            changed = await connection.execute(
                sa.update(inbox)
                .where(inbox.c.task_id == result.key[0], inbox.c.round == result.key[1], inbox.c.owner == self._owner)
                .values(
                    state=sa.case((inbox.c.cancel_requested, Kept.CANCELLED.value), else_=Kept.WAITING.value),
                    attempt=result.attempt,
                    owner=None,
                    uncertain=result.uncertain,
                    outcome=result.outcome,
                )
                .returning(inbox.c.state)
            )
            # No row: another replica, which took us for dead, has the task by now and will end it.
            states[index] = Kept(changed.scalar_one_or_none() or result.state)
        return states

    async def _record_at_once(self, connection: AsyncConnection, results: list[Result]) -> None:
        """Do what `_RECORD` does in one statement: see bellhop/sql/bulk.py for what it saves with SQLite."""
        values: list[object] = []
        for one in results:
            values += one.key
            values += (one.state is Kept.DONE, one.state.value, one.attempt, one.uncertain, one.outcome)
        await connection.exec_driver_sql(_record_sql(len(results)), (*values, self._owner))

    async def _cancel(self, connection: AsyncConnection, keys: list[Key]) -> list[Claim]:
        inserted = await self._insert_new(connection, [(key, Kept.CANCELLED, 0) for key in dict.fromkeys(keys)])
        rows = await self._rows(connection, [key for key in keys if key not in inserted])
        answers, changed, held = [], [], []
        for key in keys:
            row = rows.get(key)
            if row is None:
                answers.append(Claim(Verb.OVER))
            elif row.state == Kept.WAITING:  # between two attempts: the next one need not begin
                answers.append(Claim(Verb.OVER, row.uncertain, row.attempt))
                changed.append(_take_over(key, Kept.CANCELLED, row.attempt, None, row.uncertain))
            elif row.state == Kept.CANCELLED:
                answers.append(Claim(Verb.OVER, row.uncertain, row.attempt))
            elif row.state == Kept.CLAIMED:
                answers.append(Claim(Verb.HELD))
                held.append({"b_task_id": key[0], "b_round": key[1]})
            else:
                answers.append(Claim(Verb.OVER, row.uncertain, row.attempt, row.outcome))
        if changed:
            await connection.execute(_TAKE_OVER, changed)
        if held:
            await connection.execute(_CANCEL_LATER, held)
        return answers

    async def _insert_new(self, connection: AsyncConnection, wanted: list[tuple[Key, Kept, int]]) -> set[Key]:
        """Insert rows for the keys that have none, and return those keys."""
        rows = [
            {
                "task_id": key[0],
                "round": key[1],
                "state": state.value,
                "attempt": attempt,
                "owner": self._owner if state is Kept.CLAIMED else None,
                "uncertain": False,
                "outcome": None,
            }
            # In one order everywhere: two replicas that insert the same keys crosswise would deadlock in PostgreSQL.
            for key, state, attempt in sorted(wanted, key=lambda each: each[0])
        ]
        inserted: Any
        if self._database.dialect == "sqlite":
            values = tuple(value for row in rows for value in row.values())
            inserted = await connection.exec_driver_sql(_insert_sql(len(rows)), values)
        else:
            inserted = await connection.execute(self._insert, rows)
        return {(task_id, round_) for task_id, round_ in inserted}

    async def _rows(self, connection: AsyncConnection, keys: list[Key]) -> dict[Key, Any]:
        if not keys:
            return {}
        found = await connection.execute(
            sa.select(inbox)
            .where(inbox.c.task_id.in_({task_id for task_id, _ in keys}))
            .order_by(inbox.c.task_id, inbox.c.round)
            .with_for_update()
        )
        return {(row.task_id, row.round): row for row in found}

    # Who lives.

    @property
    def fresh(self) -> bool:
        """Say whether other replicas still take us for alive; if not, they may send what we hold."""
        return time.monotonic() - self._beaten_at < LEASE_SECONDS

    async def beat(self) -> None:
        """Tell the other replicas that we are alive."""
        before = time.monotonic()
        statement = self._database.insert(replicas).values(owner=self._owner, seen_at=self._database.clock)
        async with self._database.write() as connection:
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[replicas.c.owner], set_={"seen_at": statement.excluded.seen_at}
                )
            )
            await self._living(connection)  # to have watched them before a claim asks
        self._beaten_at = before
        await self._write_late()

    async def _living(self, connection: AsyncConnection) -> set[str]:
        """Return the owners whose heartbeat has changed within `LEASE_SECONDS` that we watched."""
        found = await connection.execute(sa.select(replicas.c.owner, replicas.c.seen_at))
        now = time.monotonic()
        # After a hang of the database, which stopped all heartbeats, the watch begins again.
        before = self._seen if now - self._looked_at < LEASE_SECONDS / 2 else {}
        self._looked_at, self._seen = now, {}
        for owner, beat in found:
            last, since = before.get(owner, (None, now))
            self._seen[owner] = (beat, since if last == beat else now)
        return {owner for owner, (_, since) in self._seen.items() if now - since < LEASE_SECONDS}

    async def forget(self, days: float) -> int:
        """Delete rows older than `days`, and replicas that are long gone; return how many tasks were forgotten.

        At most `FORGOTTEN_AT_ONCE` rows go in one transaction, so that claims are made meanwhile.
        """
        forgotten = 0
        while gone := await self._forget_some(days):
            forgotten += gone
            await asyncio.sleep(FORGET_PAUSE_SECONDS)
        async with self._database.write(BACKGROUND_SECONDS) as connection:
            old = replicas.c.seen_at < self._database.clock - REPLICA_SECONDS
            living = await self._living(connection)  # whatever the clock says
            await connection.execute(sa.delete(replicas).where(old, replicas.c.owner.not_in(living)))
        return forgotten

    async def _forget_some(self, days: float) -> int:
        async with self._database.write(BACKGROUND_SECONDS) as connection:
            key = (inbox.c.task_id, inbox.c.round)
            before = self._database.clock - days * 86_400
            old = sa.select(*key).where(inbox.c.created_at < before).order_by(inbox.c.created_at)
            # Another replica that forgets at the same time takes other rows.
            rows = await connection.execute(old.limit(FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True))
            keys = [(task_id, round_) for task_id, round_ in rows]
            if keys:
                await connection.execute(sa.delete(inbox).where(sa.tuple_(*key).in_(keys)))
            return len(keys)


@lru_cache(1000)
def _insert_sql(rows: int) -> str:
    columns = "task_id, round, state, attempt, owner, uncertain, outcome, created_at"
    places = ", ".join([f"(?, ?, ?, ?, ?, ?, ?, {CLOCK_SQL['sqlite']})"] * rows)
    return f"INSERT INTO mailer_inbox ({columns}) VALUES {places} ON CONFLICT DO NOTHING RETURNING task_id, round"  # noqa: S608


@lru_cache(1000)
def _record_sql(rows: int) -> str:
    places = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)
    return (  # the f-string holds question marks alone
        f"WITH new(task_id, round, final, state, attempt, uncertain, outcome) AS (VALUES {places}) "  # noqa: S608
        "UPDATE mailer_inbox SET state = new.state, attempt = new.attempt, owner = NULL, uncertain = new.uncertain, "
        "outcome = new.outcome FROM new WHERE mailer_inbox.task_id = new.task_id AND mailer_inbox.round = new.round "
        "AND (mailer_inbox.owner = ? OR new.final)"
    )


def _take_over(key: Key, state: Kept, attempt: int, owner: str | None, uncertain: bool) -> dict[str, Any]:
    return {
        "b_task_id": key[0],
        "b_round": key[1],
        "b_state": state.value,
        "b_attempt": attempt,
        "b_owner": owner,
        "b_uncertain": uncertain,
    }
