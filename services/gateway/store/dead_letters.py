"""Dead letters: what could not be handled, with the reason, until somebody replays or deletes it."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.settling import DIED_AT, ERROR, QUEUE, REASON, foreign_headers
from bellhop.contracts.base import derived_id, new_id
from bellhop.sql.database import Database
from services.gateway.store import outbox
from services.gateway.store.outbox import Entry, now_ms, pack, to_ms, unpack
from services.gateway.store.tables import audit, dead_letters
from services.gateway.store.tally import Tally


class DeadLetters:
    """The store behind `/v1/dead-letters`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups = Tally(self._count)

    async def add(self, connection: AsyncConnection, deliveries: list[Delivery]) -> list[None]:
        """Store dead letters; one that comes twice is stored once."""
        rows = [_row(delivery) for delivery in deliveries]
        await connection.execute(self._database.insert(dead_letters).on_conflict_do_nothing(), rows)
        return [None] * len(rows)

    async def get(self, letter_id: str) -> dict[str, Any] | None:
        """Return one dead letter with envelope and body."""
        async with self._database.read() as connection:
            query = sa.select(dead_letters).where(dead_letters.c.id == letter_id)
            row = (await connection.execute(query)).mappings().one_or_none()
            return None if row is None else dict(row)

    async def page(self, *, queue: str | None, before: str | None, waiting: bool, limit: int) -> list[dict[str, Any]]:
        """Return dead letters, newest first, without bodies."""
        columns = [column for column in dead_letters.c if column.name not in ("body", "envelope")]
        query = sa.select(*columns).order_by(dead_letters.c.id.desc()).limit(limit)
        if waiting:
            query = query.where(_WAITING)
        if queue is not None:
            query = query.where(dead_letters.c.queue == queue)
        if before is not None:
            query = query.where(dead_letters.c.id < before)
        async with self._database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def groups(self) -> list[dict[str, Any]]:
        """Return the waiting ones counted by queue, type and reason, as of the last count (`tally.py`)."""
        return await self._groups.get()

    async def _count(self) -> list[dict[str, Any]]:
        names = (dead_letters.c.queue, dead_letters.c.type, dead_letters.c.reason)
        query = (
            sa.select(*names, sa.func.count().label("count"), sa.func.min(dead_letters.c.died_at).label("oldest"))
            .where(_WAITING)
            .group_by(*names)
            .order_by(sa.desc("count"))
        )
        async with self._database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def replay(
        self, *, ids: list[str] | None, queue: str | None, actor: str, rate: float, limit: int, body: bytes | None
    ) -> int:
        """Put waiting dead letters back on the way to their queue, at most `rate` a second; return how many.

        Marking them, the messages and the audit entry are one commit, so a replay happens once or not at all.
        """
        async with self._database.write() as connection:
            query = sa.select(dead_letters).where(_WAITING).order_by(dead_letters.c.id).limit(limit)
            if ids is not None:
                query = query.where(dead_letters.c.id.in_(ids))
            if queue is not None:
                query = query.where(dead_letters.c.queue == queue)
            letters = list((await connection.execute(query)).mappings())
            if not letters:
                return 0
            start = now_ms()
            entries = [
                Entry("work", letter["queue"], _revived(letter, body), due_at=start + round(number * 1000 / rate))
                for number, letter in enumerate(letters)
            ]
            await outbox.add(connection, entries)
            chosen = [letter["id"] for letter in letters]
            await connection.execute(
                sa.update(dead_letters).where(dead_letters.c.id.in_(chosen)).values(replayed_at=start)
            )
            await _note(connection, actor, "dead-letters.replay", queue or chosen[0], f"{len(chosen)} messages")
            return len(chosen)

    async def delete(self, letter_id: str, actor: str) -> bool:
        """Give a dead letter up; its body is erased, the rest stays for the record."""
        async with self._database.write() as connection:
            done = await connection.execute(
                sa.update(dead_letters)
                .where(dead_letters.c.id == letter_id, _WAITING)
                .values(deleted_at=now_ms(), body=b"")
            )
            if done.rowcount:
                await _note(connection, actor, "dead-letters.delete", letter_id, None)
            return bool(done.rowcount)

    async def waiting(self) -> int:
        """Return how many wait for a decision, as of the last count."""
        return sum(group["count"] for group in await self.groups())


_WAITING = dead_letters.c.replayed_at.is_(None) & dead_letters.c.deleted_at.is_(None)


def _row(delivery: Delivery) -> dict[str, Any]:
    headers, envelope = delivery.headers, delivery.envelope
    queue = _text(headers.get(QUEUE) or headers.get("x-first-death-queue") or delivery.routing_key, 255)
    reason = _text(headers.get(REASON) or headers.get("x-first-death-reason") or "unknown", 64)
    died_at = _text(headers.get(DIED_AT) or _first_death(headers), 64)
    error = headers.get(ERROR, "RabbitMQ gave the message up: it was handed out too often without an ack")
    return {
        "id": new_id(),
        # Known again by what died when, so that a redelivered dead letter does not become a second one.
        "identity": derived_id(queue, *envelope.identity, died_at, str(delivery.attempt)),
        "queue": queue,
        "event_id": envelope.id,
        "type": envelope.type,
        "reason": reason,
        "error": _text(error, 20_000),
        "attempts": delivery.attempt,
        "envelope": pack(Message(b"", envelope, headers=dict(foreign_headers(headers)))),
        "body": delivery.body,
        "died_at": _ms(died_at),
        "replayed_at": None,
        "deleted_at": None,
    }


def _first_death(headers: dict[str, Any]) -> Any:
    """Return when the broker itself gave a message up (https://www.rabbitmq.com/docs/dlx#effects)."""
    deaths = headers.get("x-death")
    first = deaths[0] if isinstance(deaths, list) and deaths else None
    return first.get("time") if isinstance(first, dict) else None


def _text(value: Any, length: int) -> str:
    """Return what every database can hold: a dead letter that cannot be stored would go round for ever."""
    return str(value).replace("\x00", "\ufffd")[:length]


def _ms(died_at: str) -> int:
    try:
        return to_ms(datetime.fromisoformat(died_at))
    except (ValueError, OverflowError):
        return now_ms()


def _revived(letter: Any, body: bytes | None) -> Message:
    message = unpack(letter["envelope"], letter["body"] if body is None else body)
    return replace(message, attempt=1)


async def _note(connection: AsyncConnection, actor: str, action: str, subject: str, detail: str | None) -> None:
    await connection.execute(
        sa.insert(audit).values(id=new_id(), at=now_ms(), actor=actor, action=action, subject=subject, detail=detail)
    )
