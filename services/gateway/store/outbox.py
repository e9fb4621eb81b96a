"""Messages that must go out: written in the same commit as what they follow from, deleted once confirmed."""

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import Message
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from services.gateway.store.tables import outbox, tasks

LEASE_MS = 15_000
"""A row that its relay claimed and neither published nor released is free again after this long."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message and where it goes."""

    exchange: str
    routing_key: str
    message: Message
    task_id: str | None = None
    due_at: int = 0
    """Milliseconds since 1970; 0 is at once."""
    id: str = field(default_factory=new_id)
    """Of the row: one event may go out more than once, to several queues."""


def now_ms() -> int:
    """Return the current time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def to_ms(at: datetime) -> int:
    """Return `at` in milliseconds since 1970."""
    return round(at.timestamp() * 1000)


async def add(connection: AsyncConnection, entries: list[Entry], *, claimed: bool = False) -> None:
    """Keep messages; `claimed`: this process publishes them itself, and the sweep leaves them alone for a while."""
    claimed_until = now_ms() + LEASE_MS if claimed else 0
    await insert_many(connection, outbox, [_row(entry, claimed_until) for entry in entries])


def _row(entry: Entry, claimed_until: int) -> dict[str, Any]:
    return {
        "id": entry.id,
        "task_id": entry.task_id,
        "exchange": entry.exchange,
        "routing_key": entry.routing_key,
        "envelope": pack(entry.message),
        "body": entry.message.body,
        "due_at": entry.due_at or now_ms(),
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
            "headers": message.headers,
        },
        default=str,  # AMQP headers of foreign messages may hold what JSON does not
    )


def unpack(packed: bytes, body: bytes) -> Message:
    """Return the message that `pack` wrote down."""
    values = orjson.loads(packed)
    attempt, headers = values.pop("attempt"), values.pop("headers")
    values["time"] = datetime.fromisoformat(values["time"])
    return Message(body, Envelope(**values), attempt=attempt, headers=headers)


async def claim(connection: AsyncConnection, limit: int) -> list[Entry]:
    """Take up to `limit` due messages for this process, oldest first."""
    current = now_ms()
    free = (outbox.c.due_at <= current) & (outbox.c.claimed_until <= current)
    chosen = sa.select(outbox.c.id).where(free).order_by(outbox.c.due_at).limit(limit)
    rows = await connection.execute(
        # `free` stands outside too: of two relays that chose the same row, the second sees it claimed.
        sa.update(outbox)
        .where(outbox.c.id.in_(chosen.scalar_subquery()), free)
        .values(claimed_until=current + LEASE_MS)
        .returning(
            outbox.c.exchange,
            outbox.c.routing_key,
            outbox.c.envelope,
            outbox.c.body,
            outbox.c.task_id,
            outbox.c.due_at,
            outbox.c.id,
        )
    )
    return [
        Entry(exchange, key, unpack(packed, body), task_id, due_at, row_id)
        for exchange, key, packed, body, task_id, due_at, row_id in rows
    ]


async def withdraw(connection: AsyncConnection, task_id: str) -> bool:
    """Take the message of a task back; say whether it was still there and in nobody's hands."""
    unclaimed = (outbox.c.task_id == task_id) & (outbox.c.claimed_until <= now_ms())
    gone = await connection.execute(sa.delete(outbox).where(unclaimed))
    return bool(gone.rowcount)


async def delete_published(connection: AsyncConnection, chunks: list[list[Entry]]) -> list[None]:
    """Forget messages that the broker confirmed; a scheduled task among them is queued from now on."""
    entries = [entry for chunk in chunks for entry in chunk]
    await connection.execute(sa.delete(outbox).where(outbox.c.id.in_([entry.id for entry in entries])))
    scheduled = [entry.task_id for entry in entries if entry.task_id is not None and entry.due_at]
    if scheduled:
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.id.in_(scheduled), tasks.c.state == State.SCHEDULED)
            .values(state=State.QUEUED, updated_at=now_ms())
        )
    return [None] * len(chunks)


async def release(connection: AsyncConnection, chunks: list[list[Entry]]) -> list[None]:
    """Give claimed messages back at once."""
    entries = [entry for chunk in chunks for entry in chunk]
    await connection.execute(
        sa.update(outbox).where(outbox.c.id.in_([entry.id for entry in entries])).values(claimed_until=0)
    )
    return [None] * len(chunks)


async def depth(connection: AsyncConnection) -> tuple[int, int | None]:
    """Return how many messages are due, and since when the oldest is (milliseconds since 1970)."""
    due = sa.select(sa.func.count(), sa.func.min(outbox.c.due_at)).where(outbox.c.due_at <= now_ms())
    count, oldest = (await connection.execute(due)).one()
    return count, oldest
