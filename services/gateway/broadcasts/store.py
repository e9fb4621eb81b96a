"""Broadcasts: one row each, with the content, the progress, and the phase.

The recipients are not copied. A cursor moves through the subscribers who were confirmed when the broadcast began, in
the order of their addresses: `dispatch_cursor` is the last one who has a task. It moves in the commit that makes the
tasks (`dispatching.py`), so after a crash every recipient has exactly one task. Subscribers who unsubscribe before the
cursor reaches them are skipped, even if the broadcast was paused for long.

Progress has no counters, which every outcome would have to write and every replica to lock: it is counted on request.
The unsent tasks are few, or in one range of an index; the sent ones, up to a million, are the rest of `dispatched`. So
a count costs as much as there are unfinished and failed tasks, and a repeated outcome cannot make it wrong. Each
process keeps a count for a second. The counts of a finished broadcast are written into its row, because its tasks are
deleted later.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, cast

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import new_id
from bellhop.contracts.mail import MailDocument
from bellhop.contracts.outcomes import State
from bellhop.sql.database import BACKGROUND_SECONDS, Database
from bellhop.sql.rows import columns_of
from services.gateway.acceptance.store import IdempotencyKey
from services.gateway.outbox.store import now_ms
from services.gateway.tables import audit, broadcasts, outbox, subscriptions, tasks
from services.gateway.tasks import store as ledger
from services.gateway.tasks.pages import LISTED as TASKS_LISTED
from services.gateway.tasks.rows import TaskRow
from services.gateway.tasks.store import Acceptance, Accepted

HELD = 2**53
"""`due_at` of messages that a pause holds."""

# Tasks that the broker or the mailer has, or will have soon.
OPEN = (State.QUEUED, State.RETRYING)


class Phase(StrEnum):
    """The phase of a broadcast. The last two are final, until a client asks to retry what failed."""

    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FINISHED = "finished"

    @property
    def final(self) -> bool:
        """Return whether nothing more will happen by itself."""
        return self in (Phase.CANCELLED, Phase.FINISHED)


class Action(StrEnum):
    """The actions on a broadcast."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY_FAILED = "retry-failed"


@dataclass(frozen=True, slots=True)
class BroadcastRow:
    """One broadcast without its content, which may have a megabyte; times in milliseconds since 1970."""

    id: str
    owner: str
    list: str
    state: Phase
    subject: str | None
    template: str | None
    total: int
    dispatched: int
    dispatch_cursor: str
    all_dispatched: bool
    retry_after: str | None
    cancel_after: str
    counts: bytes | None
    created_at: int
    send_at: int | None
    started_at: int | None
    finished_at: int | None
    erased_at: int | None


@dataclass(frozen=True, slots=True)
class WholeBroadcastRow(BroadcastRow):
    """One broadcast with its content."""

    content: bytes


@dataclass(frozen=True, slots=True)
class NewBroadcast:
    """A broadcast to keep."""

    id: str
    owner: str
    list: str
    content: MailDocument
    send_at: int | None
    answer: bytes
    key: IdempotencyKey | None


@dataclass(frozen=True, slots=True)
class ListAudience:
    """What is known about a list before a broadcast."""

    known: bool
    """It has or had a subscriber, or a broadcast was sent to it."""
    confirmed: bool
    """It has a confirmed subscriber now."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The number of recipients in each state."""

    phase: Phase
    total: int
    dispatched: int
    by_state: dict[str, int]
    """`waiting` are those who have no task yet."""

    @property
    def done(self) -> int:
        """Return how many will not change any more."""
        return self.dispatched - sum(self.by_state[state] for state in OPEN)

    @property
    def left(self) -> int:
        """Return how many recipients are left."""
        return 0 if self.phase.final else self.total - self.done


# The phases in which an action is possible, and the values that it sets.
_FROM = {
    Action.PAUSE: (Phase.SCHEDULED, Phase.RUNNING),
    Action.RESUME: (Phase.PAUSED,),
    Action.CANCEL: (Phase.SCHEDULED, Phase.RUNNING, Phase.PAUSED),
    Action.RETRY_FAILED: (Phase.RUNNING, Phase.PAUSED, Phase.FINISHED),
}
_BEGUN_OR_NOT = sa.case((broadcasts.c.started_at.is_(None), Phase.SCHEDULED.value), else_=Phase.RUNNING.value)
_STILL_PAUSED = sa.case((broadcasts.c.state == Phase.PAUSED, Phase.PAUSED.value), else_=Phase.RUNNING.value)
_VALUES: dict[Action, dict[str, object]] = {
    Action.PAUSE: {"state": Phase.PAUSED.value},
    Action.RESUME: {"state": _BEGUN_OR_NOT},
    Action.CANCEL: {"state": Phase.CANCELLING.value},
    Action.RETRY_FAILED: {"state": _STILL_PAUSED, "retry_after": "", "counts": None, "finished_at": None},
}
# An action that has already taken effect is no error.
_ALREADY = {
    Action.PAUSE: (Phase.PAUSED,),
    Action.RESUME: (Phase.SCHEDULED, Phase.RUNNING),
    Action.CANCEL: (Phase.CANCELLING, Phase.CANCELLED),
    Action.RETRY_FAILED: (),
}


class Broadcasts:
    """The store behind `/v1/broadcasts`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, connection: AsyncConnection, items: list[NewBroadcast]) -> list[Accepted]:
        """Keep new broadcasts and the idempotency keys they came with."""
        accepted = await ledger.accept(connection, [Acceptance(item.answer, key=item.key) for item in items])
        rows = [asdict(_row(item)) for item, each in zip(items, accepted, strict=True) if each.new]
        if rows:
            await connection.execute(sa.insert(broadcasts), rows)
        return accepted

    async def get(self, broadcast_id: str, owner: str | None = None) -> BroadcastRow | None:
        """Return a broadcast without its content; None where there is none, or it belongs to another client."""
        query = sa.select(*_LISTED).where(broadcasts.c.id == broadcast_id)
        if owner is not None:
            query = query.where(broadcasts.c.owner == owner)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _broadcast(row)

    async def page(self, *, owner: str | None, before: str | None, limit: int) -> Sequence[BroadcastRow]:
        """Return broadcasts, newest first, without their content."""
        query = sa.select(*_LISTED).order_by(broadcasts.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(broadcasts.c.owner == owner)
        if before is not None:
            query = query.where(broadcasts.c.id < before)
        async with self._database.read() as connection:
            return [_broadcast(row) for row in await connection.execute(query)]

    async def active(self) -> Sequence[BroadcastRow]:
        """Return the broadcasts that have not ended, without their content."""
        # Not by phase: `finished_at` has the index that finds the few unfinished ones.
        query = sa.select(*_LISTED).where(broadcasts.c.finished_at.is_(None)).order_by(broadcasts.c.id)
        async with self._database.read() as connection:
            return [_broadcast(row) for row in await connection.execute(query)]

    async def act(self, broadcast_id: str, action: Action, actor: str) -> tuple[bool, Phase]:
        """Do `action`; return whether it is possible now, and the phase of the broadcast.

        After the commit of a pause or a cancel no further task is made: making tasks needs the same row.
        """
        async with self._database.write() as connection:
            mine = broadcasts.c.id == broadcast_id
            # Without its content no mail can be rendered again.
            possible = broadcasts.c.erased_at.is_(None) if action is Action.RETRY_FAILED else sa.true()
            done = await connection.execute(
                sa.update(broadcasts)
                .where(mine, broadcasts.c.state.in_(_FROM[action]), possible)
                .values(_VALUES[action])
            )
            phase = Phase((await connection.execute(sa.select(broadcasts.c.state).where(mine))).scalar_one())
            if not done.rowcount:
                return phase in _ALREADY[action], phase
            if action is Action.RESUME:
                await connection.execute(_release(broadcast_id))
            await connection.execute(
                sa.insert(audit).values(
                    id=new_id(), at=now_ms(), actor=actor, action=f"broadcasts.{action.value}", subject=broadcast_id
                )
            )
            return True, phase

    async def tasks(self, broadcast_id: str, *, state: State | None, after: str | None, limit: int) -> list[TaskRow]:
        """Return the tasks of a broadcast in the order of recipients; `after` is the last of the page before."""
        query = (
            sa.select(*TASKS_LISTED)
            .where(tasks.c.broadcast_id == broadcast_id)
            .order_by(tasks.c.recipient)
            .limit(limit)
        )
        if state is not None:
            query = query.where(tasks.c.state == state)
        if after is not None:
            query = query.where(tasks.c.recipient > after)
        async with self._database.read() as connection:
            return [cast(TaskRow, dict(row)) for row in (await connection.execute(query)).mappings()]

    async def counts(self, broadcast_id: str) -> Counts:
        """Count; one statement, so that the counts are consistent."""
        async with self._database.read() as connection:
            row = (await connection.execute(counting(broadcast_id))).mappings().one()
        return counts_of(row)

    async def under_way(self, broadcast_id: str) -> tuple[int, dict[str, int]]:
        """Return how many have a task, and how many of these are in each state that is not final."""
        query = sa.select(broadcasts.c.dispatched.label("dispatched"), *_numbers(broadcast_id, OPEN)).where(
            broadcasts.c.id == broadcast_id
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one()
        return row["dispatched"], {state.value: row[f"n_{state.value}"] for state in OPEN}

    async def list_audience(self, list_: str) -> ListAudience:
        """Return whether a list is known, and whether it has a confirmed subscriber."""
        mine = subscriptions.c.list == list_
        query = sa.select(
            sa.exists().where(mine, subscriptions.c.state == "confirmed").label("confirmed"),
            (sa.exists().where(mine) | sa.exists().where(broadcasts.c.list == list_)).label("known"),
        )
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one()
        return ListAudience(known=bool(row.known), confirmed=bool(row.confirmed))

    async def size(self, list_: str) -> int:
        """Return how many are confirmed on a list."""
        query = sa.select(sa.func.count()).where(subscriptions.c.list == list_, subscriptions.c.state == "confirmed")
        async with self._database.read(BACKGROUND_SECONDS) as connection:
            return (await connection.execute(query)).scalar_one()


# Those without a task count as `waiting`, and a task of a broadcast is never `scheduled`.
_COUNTED = [state for state in State if state not in (State.SENT, State.SCHEDULED)]


def counting(broadcast_id: str) -> sa.Select[Any]:
    """Return the query whose row `counts_of` reads."""
    columns = (
        broadcasts.c.state,
        broadcasts.c.total,
        broadcasts.c.dispatched.label("dispatched"),
        broadcasts.c.all_dispatched.label("all_dispatched"),
        broadcasts.c.counts,
    )
    return sa.select(*columns, *_numbers(broadcast_id, _COUNTED)).where(broadcasts.c.id == broadcast_id)


def _numbers(broadcast_id: str, states: Iterable[State]) -> list[sa.Label[int]]:
    return [
        sa.select(sa.func.count())
        .where(tasks.c.broadcast_id == broadcast_id, tasks.c.state == state.value)
        .scalar_subquery()
        .label(f"n_{state.value}")
        for state in states
    ]


def counts_of(row: Any) -> Counts:
    """Return the counts that a row of `counting` holds."""
    phase = Phase(row["state"])
    if row["counts"] is not None:
        return Counts(phase, row["total"], row["dispatched"], orjson.loads(row["counts"]))
    by_state = {state.value: row[f"n_{state.value}"] for state in _COUNTED}
    by_state[State.SENT.value] = row["dispatched"] - sum(by_state.values())
    by_state["waiting"] = 0 if row["all_dispatched"] else max(row["total"] - row["dispatched"], 0)
    return Counts(phase, row["total"], row["dispatched"], by_state)


_LISTED = columns_of(broadcasts, BroadcastRow)
WHOLE = columns_of(broadcasts, WholeBroadcastRow)


def _broadcast(row: Any) -> BroadcastRow:
    found = BroadcastRow(*row)
    return replace(found, state=Phase(found.state))


def whole_broadcast(row: Any) -> WholeBroadcastRow:
    """Return what a row of the columns `WHOLE` holds."""
    found = WholeBroadcastRow(*row)
    return replace(found, state=Phase(found.state))


def _row(item: NewBroadcast) -> WholeBroadcastRow:
    return WholeBroadcastRow(
        id=item.id,
        owner=item.owner,
        list=item.list,
        state=Phase.SCHEDULED,
        subject=item.content.get("subject"),
        template=item.content.get("template"),
        content=orjson.dumps(item.content),
        total=0,
        dispatched=0,
        dispatch_cursor="",
        all_dispatched=False,
        retry_after=None,
        cancel_after="",
        counts=None,
        created_at=now_ms(),
        send_at=item.send_at,
        started_at=None,
        finished_at=None,
        erased_at=None,
    )


def queued_in(broadcast_id: str) -> sa.Select[Any]:
    """Return the query for the ids of a broadcast's tasks whose messages may still be in the outbox."""
    return sa.select(tasks.c.id).where(tasks.c.broadcast_id == broadcast_id, tasks.c.state == State.QUEUED.value)


def _release(broadcast_id: str) -> sa.Update:
    held = (outbox.c.due_at == HELD) & outbox.c.task_id.in_(queued_in(broadcast_id))
    return sa.update(outbox).where(held).values(due_at=0)
