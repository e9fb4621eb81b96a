"""The outbox: messages are written in the commit of their cause, and deleted once they are confirmed.

A message without a time of its own is published in the order of `sequence`: a wrong clock delays nothing. Leases and
back-offs are times of the database's clock, because several processes share them. They are void if that clock must
have been set back since.

A row is `CERTAINLY_HERE` until a process claims it, and again after a release as not published. A claim that is
held or expired, and a message that was published without a confirm (`maybe_delivered`), may have been delivered.
"""

import random
import time
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from time import monotonic
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import OWNER, Message
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many, update_many
from bellhop.sql.database import clock_ms
from services.gateway.tables import outbox, tasks

LEASE_MS = 15_000
"""A row that a publisher claimed and neither deleted nor released can be claimed again after so long."""
MAX_BACK_OFF_MS = 30_000
MAX_SKEW_MS = 60_000
"""The database's clock may be set back by so much. A lease or a back-off that ends later than that is void."""


class ReleaseReason(Enum):
    """Why a claimed message is still in the outbox."""

    UNSENT = "unsent"
    """It was not published."""
    REFUSED = "refused"
    """RabbitMQ returned or refused it; it is published again after a back-off."""
    UNKNOWN = "unknown"
    """It was published and not confirmed, so it may have been delivered."""
    HANGING = "hanging"
    """The same, while other messages are confirmed; it is published again after a back-off."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message and where it goes."""

    exchange: str
    routing_key: str
    message: Message
    task_id: str | None = None
    due_at: int = 0
    """Milliseconds since 1970; 0 is immediately."""
    id: str = field(default_factory=new_id)
    """Of the row: one event may go out more than once, to several queues."""
    refusals: int = 0
    """How many times RabbitMQ did not take it."""

    @property
    def destination(self) -> "Destination":
        """Return where it goes."""
        return self.exchange, self.routing_key


Destination = tuple[str, str]
"""Exchange and routing key."""


@dataclass(frozen=True, slots=True)
class Released:
    """Claimed messages that were not confirmed."""

    entries: list[Entry]
    reason: ReleaseReason
    lease_ends: float
    """When our lease ends at the latest, by `monotonic`; a later lease is another process's."""


def now_ms() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def to_ms(at: datetime) -> int:
    """Return `at` in milliseconds since 1970."""
    return round(at.timestamp() * 1000)


async def add(
    connection: AsyncConnection, entries: list[Entry], *, claimed: bool = False, maybe_delivered: bool = False
) -> None:
    """Store messages.

    Args:
        connection: the transaction.
        entries: the messages.
        claimed: this process publishes them itself, and the sweep leaves them alone for `LEASE_MS`.
        maybe_delivered: earlier copies were published, so they cannot be withdrawn.
    """
    claimed_until = await clock_ms(connection) + LEASE_MS if claimed and entries else 0
    rows = [_row(entry, claimed_until) for entry in entries]
    if maybe_delivered:
        rows = [row | {"maybe_delivered": True} for row in rows]
    await insert_many(connection, outbox, rows)


def _row(entry: Entry, claimed_until: int) -> dict[str, object]:
    return {
        "id": entry.id,
        "task_id": entry.task_id,
        "exchange": entry.exchange,
        "routing_key": entry.routing_key,
        "envelope": pack(entry.message),
        "body": entry.message.body,
        "due_at": entry.due_at,
        "claimed_until": 0 if entry.due_at else claimed_until,
    }


def pack(message: Message) -> bytes:
    """Write down everything of a message but its body."""
    envelope = message.envelope
    return orjson.dumps(
        {
            "id": envelope.id,
            "source": envelope.source,
            "type": envelope.type,
            "time": envelope.time,
            "subject": envelope.subject,
            "traceparent": envelope.traceparent,
            "extensions": envelope.extensions,
            "attempt": message.attempt,
            # Among the headers, where gateways of the previous version keep it too.
            "headers": message.headers if envelope.owner is None else {**message.headers, OWNER: envelope.owner},
        },
        default=str,  # AMQP headers of foreign messages may have types that JSON lacks
    )


def unpack(packed: bytes, body: bytes) -> Message:
    """Return the message that `pack` wrote down."""
    values = orjson.loads(packed)
    attempt, headers = values.pop("attempt"), values.pop("headers")
    values["time"] = datetime.fromisoformat(values["time"])
    return Message(body, Envelope(**values, owner=headers.pop(OWNER, None)), attempt=attempt, headers=headers)


async def next_destination(connection: AsyncConnection, after: Destination | None) -> Destination | None:
    """Return the destination that follows `after` and has messages, in the order of the index; None at the end."""
    place = sa.tuple_(outbox.c.exchange, outbox.c.routing_key)
    query = sa.select(outbox.c.exchange, outbox.c.routing_key).order_by(outbox.c.exchange, outbox.c.routing_key)
    if after is not None:
        query = query.where(place > sa.tuple_(*after))
    found = (await connection.execute(query.limit(1))).first()
    return None if found is None else (found[0], found[1])


async def claim(connection: AsyncConnection, destination: Destination, limit: int) -> list[Entry]:
    """Claim up to `limit` due messages of one destination for `LEASE_MS`, oldest first.

    Messages whose time has come get half of the places, so that neither kind waits for the end of the other.
    """
    current = await clock_ms(connection)
    rows = await _claim(connection, destination, current, outbox.c.due_at.between(1, current), limit // 2)
    rows += await _claim(connection, destination, current, outbox.c.due_at == 0, limit - len(rows))
    return [
        Entry(
            row.exchange, row.routing_key, unpack(row.envelope, row.body), row.task_id, row.due_at, row.id, row.refusals
        )
        for row in sorted(rows, key=lambda row: (row.due_at, row.sequence))
    ]


async def _claim(
    connection: AsyncConnection, destination: Destination, current: int, due: sa.ColumnElement[bool], limit: int
) -> list[Any]:
    free = sa.and_(
        ~outbox.c.claimed_until.between(current + 1, current + LEASE_MS + MAX_SKEW_MS),
        ~outbox.c.retry_at.between(current + 1, current + MAX_BACK_OFF_MS + MAX_SKEW_MS),
    )
    chosen = (
        sa.select(outbox.c.sequence)
        .where(outbox.c.exchange == destination[0], outbox.c.routing_key == destination[1], due, free)
        .order_by(outbox.c.due_at, outbox.c.sequence)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = await connection.execute(
        # `free` is repeated outside: of two publishers that chose the same row, the second sees it claimed.
        sa.update(outbox)
        .where(outbox.c.sequence.in_(chosen.scalar_subquery()), free)
        .values(
            claimed_until=current + LEASE_MS,
            # An expired lease: its holder may have published the message.
            maybe_delivered=outbox.c.maybe_delivered | (outbox.c.claimed_until > 0),
        )
        .returning(outbox)
    )
    return list(claimed)


CERTAINLY_HERE = (outbox.c.claimed_until == 0) & ~outbox.c.maybe_delivered
"""Rows whose messages no process has published or is about to: only these can be withdrawn or held."""


async def withdraw(connection: AsyncConnection, task_id: str) -> bool:
    """Delete the message of a task if it certainly was not published; return whether it was deleted."""
    gone = await connection.execute(sa.delete(outbox).where(outbox.c.task_id == task_id, CERTAINLY_HERE))
    return bool(gone.rowcount)


async def delete_published(connection: AsyncConnection, chunks: list[list[Entry]]) -> list[None]:
    """Delete messages that the broker confirmed; a scheduled task among them is queued from now on."""
    entries = [entry for chunk in chunks for entry in chunk]
    scheduled = [entry.task_id for entry in entries if entry.task_id is not None and entry.due_at]
    if scheduled:
        # Tasks before messages, in the order of a cancel, so that the two cannot deadlock.
        mine = sa.select(tasks.c.id).where(tasks.c.id.in_(scheduled)).order_by(tasks.c.id)
        await connection.execute(mine.with_for_update())
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.id.in_(scheduled), tasks.c.state == State.SCHEDULED)
            .values(state=State.QUEUED, updated_at=now_ms())
        )
    await connection.execute(sa.delete(outbox).where(outbox.c.id.in_([entry.id for entry in entries])))
    return [None] * len(chunks)


PartlyConfirmed = tuple[Entry, tuple[Entry, ...]]
"""A message that was partly confirmed, and what is left of it: one or more messages."""


async def replace(connection: AsyncConnection, chunks: list[list[PartlyConfirmed]]) -> list[None]:
    """Put what is left of partly confirmed messages in their place, in one commit.

    The row of a message becomes the first that is left of it, so that it keeps its place in the order of `sequence`.
    """
    items = [item for chunk in chunks for item in chunk]
    rows: list[dict[str, Any]] = [
        {"id": entry.id, "exchange": left[0].exchange, "routing_key": left[0].routing_key, "due_at": left[0].due_at}
        | {"claimed_until": 0}
        for entry, left in items
    ]
    rows.sort(key=lambda row: row["id"])  # the same order everywhere, to avoid deadlocks
    await update_many(connection, outbox, "id", rows)
    await add(connection, [rest for _, left in items for rest in left[1:]])
    return [None] * len(chunks)


async def release(connection: AsyncConnection, items: list[Released]) -> list[None]:
    """Give up claims on messages that were not confirmed. A claim that is another process's by now stays."""
    current = await clock_ms(connection)
    for item in items:
        lease_until = current + round((item.lease_ends - monotonic()) * 1000)
        by_refusals: dict[int, list[str]] = {}
        for entry in item.entries:
            by_refusals.setdefault(entry.refusals, []).append(entry.id)
        for refusals, ids in by_refusals.items():
            values: dict[str, Any] = {"claimed_until": 0}
            if item.reason in (ReleaseReason.UNKNOWN, ReleaseReason.HANGING):
                values["maybe_delivered"] = True
            if item.reason in (ReleaseReason.REFUSED, ReleaseReason.HANGING):
                values |= {"refusals": refusals + 1, "retry_at": current + back_off_ms(refusals)}
            await connection.execute(
                sa.update(outbox).where(outbox.c.id.in_(ids), outbox.c.claimed_until <= lease_until).values(values)
            )
    return [None] * len(items)


def back_off_ms(refusals: int) -> int:
    """Return the back-off after so many refusals: doubling, with jitter."""
    return round(min(MAX_BACK_OFF_MS, 1000 << min(refusals, 10)) * random.uniform(0.5, 1))


async def waiting(connection: AsyncConnection) -> int:
    """Return how many messages are in the outbox, without those whose time has not come. O(messages)."""
    due = sa.select(sa.func.count()).select_from(outbox).where(outbox.c.due_at <= await clock_ms(connection))
    count: int = (await connection.execute(due)).scalar_one()
    return count
