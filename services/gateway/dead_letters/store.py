"""Dead letters: messages that could not be handled, with the reason, until a person replays or deletes them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.headers import DEAD_LETTERED_AT, ERROR, QUEUE, REASON, foreign_headers
from bellhop.amqp.message import Delivery, Message
from bellhop.contracts.base import derived_id, new_id
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database, clock_ms
from bellhop.sql.rows import columns_of
from services.gateway.dead_letters import outcomes as dead_tasks
from services.gateway.dead_letters.rows import DeadLetter, DeadLetterGroup, WholeDeadLetter
from services.gateway.outbox import store as outbox
from services.gateway.outbox.routing import EVENTS, OTHER_TYPES, UNROUTED
from services.gateway.outbox.store import Entry, now_ms, pack, to_ms, unpack
from services.gateway.tables import audit, dead_letters
from services.gateway.tasks.counts import CachedCount
from services.gateway.tasks.store import Ledger


class Superseded(Exception):
    """The task of a dead letter changed without it."""

    def __init__(self, state: State | None) -> None:
        """`state` is the present state of the task."""
        super().__init__(f"The task of this dead letter is {state}, so it is not sent again.")


REPLAY_BYTES = 32 * 1024 * 1024


class DeadLetters:
    """The store behind `/v1/dead-letters`."""

    def __init__(self, database: Database, unrouted_limit: int = 100_000) -> None:
        """`unrouted_limit`: approximate maximum number of stored events of types that no queue is bound to."""
        self._database = database
        self._ledger = Ledger(database)
        self._groups = CachedCount(self._count)
        self._unrouted_limit = unrouted_limit
        self._added = 0

    async def add(self, connection: AsyncConnection, deliveries: list[Delivery]) -> list[str | None]:
        """Store dead letters, and fail their tasks; a redelivered one is stored once.

        Return for each the id of the task that it belongs to, if any.
        """
        rows = [_row(delivery) for delivery in deliveries]
        insert = self._database.insert(dead_letters).on_conflict_do_nothing().returning(dead_letters.c.id)
        new = set((await connection.execute(insert, [asdict(row) for row in rows])).scalars())
        found = [(delivery, row) for delivery, row in zip(deliveries, rows, strict=True) if row.id in new]
        failed = await dead_tasks.failures(connection, found)
        await self._ledger.end(connection, list(failed.values()))
        return [failed[row.id].task_id if row.id in failed else None for row in rows]

    async def add_unrouted(self, connection: AsyncConnection, deliveries: list[Delivery]) -> list[None]:
        """Store events that no queue is bound to; a redelivered one is stored once.

        Beyond the limit the oldest are deleted.
        """
        rows = [asdict(_unrouted(delivery)) for delivery in deliveries]
        await connection.execute(self._database.insert(dead_letters).on_conflict_do_nothing(), rows)
        self._added += len(rows)
        if self._added >= min(_TRIM_EVERY, self._unrouted_limit):
            self._added = 0
            await self._trim(connection)
        return [None] * len(rows)

    async def _trim(self, connection: AsyncConnection) -> None:
        newest = sa.select(dead_letters.c.id).where(_UNROUTED).order_by(dead_letters.c.id.desc())
        last = (await connection.execute(newest.offset(self._unrouted_limit).limit(1))).scalar_one_or_none()
        if last is not None:
            await connection.execute(sa.delete(dead_letters).where(_UNROUTED, dead_letters.c.id <= last))

    async def get(self, letter_id: str) -> WholeDeadLetter | None:
        """Return one dead letter with envelope and body."""
        query = sa.select(*columns_of(dead_letters, WholeDeadLetter)).where(dead_letters.c.id == letter_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else WholeDeadLetter(*row)

    async def page(self, *, queue: str | None, before: str | None, waiting: bool, limit: int) -> list[DeadLetter]:
        """Return dead letters, newest first, without bodies."""
        query = sa.select(*columns_of(dead_letters, DeadLetter)).order_by(dead_letters.c.id.desc()).limit(limit)
        if waiting:
            query = query.where(_WAITING)
        # Events of types that no queue is bound to are no failures; they are listed only on request.
        query = query.where(dead_letters.c.queue == queue if queue is not None else ~_UNROUTED)
        if before is not None:
            query = query.where(dead_letters.c.id < before)
        async with self._database.read() as connection:
            return [DeadLetter(*row) for row in await connection.execute(query)]

    async def groups(self, queue: str | None) -> list[DeadLetterGroup]:
        """Count the waiting ones that `page` lists, by queue, type and reason, as of the last count (`counts.py`)."""
        counted = await self._groups.get()
        return [group for group in counted if (group.queue == queue if queue else group.queue != UNROUTED)]

    async def _count(self) -> list[DeadLetterGroup]:
        names = (dead_letters.c.queue, dead_letters.c.type, dead_letters.c.reason)
        query = (
            sa.select(*names, sa.func.count().label("count"), sa.func.min(dead_letters.c.died_at).label("oldest"))
            .where(_WAITING)
            .group_by(*names)
            .order_by(sa.desc("count"))
        )
        async with self._database.read() as connection:
            return [DeadLetterGroup(*row) for row in await connection.execute(query)]

    async def replay(
        self,
        *,
        ids: list[str] | None,
        queue: str | None,
        actor: str,
        rate: float,
        limit: int,
        body: bytes | None,
        type_: str | None = None,
    ) -> int:
        """Publish waiting dead letters to their queue again, at most `rate` a second; return how many.

        Marking them, the messages, their tasks and the audit entry are one commit, so a replay happens once or not at
        all. Their bodies have up to `REPLAY_BYTES` together, or it is one dead letter: then fewer than `limit` are
        replayed, and the rest when it is asked for again. A dead letter whose task changed without it is closed, and
        nothing is sent.

        Raises:
            Superseded: that is so for all of `ids`, which stay as they are.
        """
        async with self._database.write() as connection:
            query = (
                sa.select(*columns_of(dead_letters, WholeDeadLetter))
                .where(_WAITING)
                .order_by(dead_letters.c.id)
                .limit(limit)
            )
            if ids is not None:
                query = query.where(dead_letters.c.id.in_(ids))
            if queue is not None:
                query = query.where(dead_letters.c.queue == queue)
            if type_ is not None:
                query = query.where(dead_letters.c.type == type_)
            if limit > 1:
                query = query.limit(await _within_budget(connection, query))
            # Locked: another gateway may get the same request at the same time.
            locked = query.with_for_update(skip_locked=True)
            found = [WholeDeadLetter(*row) for row in await connection.execute(locked)]
            if not found:
                return 0
            start = await clock_ms(connection)
            decisions = await dead_tasks.requeue_tasks(connection, found, body)
            if ids is not None and all(decision.over is not None for decision in decisions.values()):
                raise Superseded(next(iter(decisions.values())).over)
            going = [
                (dead_letter, decisions[dead_letter.id])
                for dead_letter in found
                if decisions[dead_letter.id].over is None
            ]
            entries = [
                _replay_entry(
                    dead_letter,
                    _replayed_message(dead_letter, body, decision.attempt),
                    decision.task_id,
                    decision.due_at or start + round(number * 1000 / rate),
                )
                for number, (dead_letter, decision) in enumerate(going)
            ]
            # Earlier copies of these messages may have had an effect.
            await outbox.add(connection, entries, maybe_delivered=True)
            chosen = [dead_letter.id for dead_letter in found]
            await connection.execute(
                sa.update(dead_letters).where(dead_letters.c.id.in_(chosen)).values(replayed_at=start)
            )
            await _note(connection, actor, "dead-letters.replay", queue or chosen[0], f"{len(going)} messages")
            return len(going)

    async def delete(self, letter_id: str, actor: str) -> bool:
        """Delete a dead letter: its body is erased, the rest stays as a record."""
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
        """Return how many dead letters wait for a decision, as of the last count; without unrouted events."""
        return sum(group.count for group in await self.groups(None))

    async def unrouted(self) -> int:
        """Return how many events are kept because no queue is bound to their type, as of the last count."""
        return sum(group.count for group in await self.groups(UNROUTED))


_TRIM_EVERY = 1000
# A literal, because a partial index is not used for a parameter.
_UNROUTED = dead_letters.c.queue == sa.literal_column(f"'{UNROUTED}'")
_WAITING = dead_letters.c.replayed_at.is_(None) & dead_letters.c.deleted_at.is_(None)


async def _within_budget(connection: AsyncConnection, query: sa.Select[Any]) -> int:
    """Return how many of the dead letters of `query`, from the first on, fit into memory; at least one."""
    sizes = query.with_only_columns(sa.func.length(dead_letters.c.body))
    total = count = 0
    for size in (await connection.execute(sizes)).scalars():
        total += size
        if total > REPLAY_BYTES:
            break
        count += 1
    return max(1, count)


def _row(delivery: Delivery) -> WholeDeadLetter:
    headers, envelope = delivery.headers, delivery.envelope
    death = _last_dead_lettering(headers)
    queue = _text(headers.get(QUEUE) or death.get("queue") or delivery.routing_key, 255)
    reason = _text(headers.get(REASON) or death.get("reason") or "unknown", 64)
    dead_lettered_at = _text(headers.get(DEAD_LETTERED_AT) or death.get("time"), 64)
    error = headers.get(ERROR, "RabbitMQ gave the message up: it was handed out too often without an ack")
    return WholeDeadLetter(
        id=new_id(),
        identity=derived_id(queue, *envelope.identity, dead_lettered_at, str(delivery.attempt)),
        queue=queue,
        event_id=envelope.id,
        type=envelope.type,
        reason=reason,
        error=_text(error, 20_000),
        attempts=delivery.attempt,
        envelope=pack(Message(b"", envelope, headers=dict(foreign_headers(headers)))),
        body=delivery.body,
        died_at=_ms(dead_lettered_at),
        replayed_at=None,
        deleted_at=None,
        erased_at=None,
    )


def _unrouted(delivery: Delivery) -> WholeDeadLetter:
    """Return the row of an event that no queue is bound to."""
    envelope = delivery.envelope
    kept_at = str(delivery.headers.get(DEAD_LETTERED_AT))
    return replace(
        _row(delivery),
        identity=derived_id(UNROUTED, envelope.source, envelope.id, kept_at),
        queue=UNROUTED,
        reason=UNROUTED,
        error=f"No queue is bound to events of the type {envelope.type}.",
    )


def _replay_entry(dead_letter: WholeDeadLetter, message: Message, task_id: str | None, due_at: int) -> Entry:
    """Return the entry that replays a dead letter: to its queue, or an event to its present destinations."""
    if dead_letter.queue == UNROUTED:
        return Entry(EVENTS, OTHER_TYPES, message, due_at=due_at)
    return Entry("work", dead_letter.queue, message, task_id, due_at)


def _last_dead_lettering(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where and when the broker dead-lettered a message, newest first (https://www.rabbitmq.com/docs/dlx#effects).

    Not the first: a message that was retried was dead-lettered by a retry queue before.
    """
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    return last if isinstance(last, dict) else {}


def _text(value: Any, length: int) -> str:
    """Return a text that every database can store: otherwise RabbitMQ would redeliver the dead letter without limit."""
    return str(value).replace("\x00", "\ufffd")[:length]


def _ms(dead_lettered_at: str) -> int:
    try:
        return to_ms(datetime.fromisoformat(dead_lettered_at))
    except (ValueError, OverflowError):
        return now_ms()


def _replayed_message(dead_letter: WholeDeadLetter, body: bytes | None, attempt: int) -> Message:
    message = unpack(dead_letter.envelope, dead_letter.body if body is None else body)
    return replace(message, attempt=attempt)


async def _note(connection: AsyncConnection, actor: str, action: str, subject: str, detail: str | None) -> None:
    await connection.execute(
        sa.insert(audit).values(id=new_id(), at=now_ms(), actor=actor, action=action, subject=subject, detail=detail)
    )
