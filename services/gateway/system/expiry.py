"""Deletes rows past their retention in batches: transactions so short that they hardly delay other writers.

Each function deletes up to `limit` rows that are older than `before` (milliseconds since 1970), the oldest first, and
returns how many. Rows that another transaction has locked are skipped: two gateways that delete concurrently must not
wait for one another, and the next batch finds the remaining rows. Every look-up is a range of an index.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.gateway.attachments.store import attachments, take_off_usage
from services.gateway.outbox.routing import UNROUTED
from services.gateway.outbox.store import now_ms
from services.gateway.subscribers.store import Status
from services.gateway.tables import (
    api_keys,
    attempts,
    audit,
    broadcasts,
    dead_letters,
    form_limits,
    idempotency_keys,
    subscribers,
    subscriptions,
    suppressions,
    tasks,
)

_NOT_WAITING = dead_letters.c.replayed_at.is_not(None) | dead_letters.c.deleted_at.is_not(None)
_WAITING = dead_letters.c.replayed_at.is_(None) & dead_letters.c.deleted_at.is_(None)


def _id_at(ms: int) -> str:
    """Return a bound for ids: ids made at `ms` or later are greater, earlier ones are less (`new_id`)."""
    digits = f"{max(ms, 0):012x}"
    return f"{digits[:8]}-{digits[8:]}-"


async def _chosen(connection: AsyncConnection, query: sa.Select[Any], limit: int) -> list[Any]:
    locked = query.limit(limit).with_for_update(skip_locked=True)
    return list((await connection.execute(locked)).scalars())


async def _delete(connection: AsyncConnection, column: sa.Column[str], query: sa.Select[Any], limit: int) -> int:
    ids = await _chosen(connection, query, limit)
    if ids:
        await connection.execute(sa.delete(column.table).where(column.in_(ids)))
    return len(ids)


async def delete_tasks(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete tasks that have ended, with their attempts."""
    ended = sa.select(tasks.c.id).where(tasks.c.finished_at < before).order_by(tasks.c.finished_at)
    ids = await _chosen(connection, ended, limit)
    if ids:
        await connection.execute(sa.delete(attempts).where(attempts.c.task_id.in_(ids)))
        await connection.execute(sa.delete(tasks).where(tasks.c.id.in_(ids)))
    return len(ids)


async def delete_idempotency_keys(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete idempotency keys: the same key names another request from now on."""
    table = idempotency_keys.c
    old = sa.select(table.owner, table.key).where(table.created_at < before).order_by(table.created_at)
    found = await connection.execute(old.limit(limit).with_for_update(skip_locked=True))
    names = [(owner, key) for owner, key in found]
    if names:
        await connection.execute(sa.delete(idempotency_keys).where(sa.tuple_(table.owner, table.key).in_(names)))
    return len(names)


async def erase_replayed_dead_letters(connection: AsyncConnection, before: int, limit: int) -> int:
    """Erase the contents of dead letters that were replayed; their rows stay for the record."""
    held = dead_letters.c.replayed_at.is_not(None) & dead_letters.c.erased_at.is_(None)
    replayed = sa.select(dead_letters.c.id).where(held, dead_letters.c.replayed_at < before)
    ids = await _chosen(connection, replayed.order_by(dead_letters.c.replayed_at), limit)
    if ids:
        await connection.execute(sa.update(dead_letters).where(dead_letters.c.id.in_(ids)).values(_erased()))
    return len(ids)


async def delete_waiting_dead_letters(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete dead letters without a decision, as by hand: their contents are erased."""
    waiting = sa.select(dead_letters.c.id).where(_WAITING, dead_letters.c.id < _id_at(before))
    ids = await _chosen(connection, waiting.order_by(dead_letters.c.id), limit)
    if ids:
        values = _erased() | {"deleted_at": now_ms()}
        await connection.execute(sa.update(dead_letters).where(dead_letters.c.id.in_(ids)).values(values))
    return len(ids)


def _erased() -> dict[str, Any]:
    return {"body": b"", "envelope": b"{}", "erased_at": now_ms()}


async def delete_dead_letters(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete the rows of dead letters that were replayed or deleted."""
    decided = sa.select(dead_letters.c.id).where(dead_letters.c.id < _id_at(before), _NOT_WAITING)
    return await _delete(connection, dead_letters.c.id, decided.order_by(dead_letters.c.id), limit)


async def delete_unrouted(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete events of types that no queue is bound to, replayed ones too."""
    old = sa.select(dead_letters.c.id).where(dead_letters.c.queue == UNROUTED, dead_letters.c.id < _id_at(before))
    return await _delete(connection, dead_letters.c.id, old.order_by(dead_letters.c.id), limit)


async def delete_audit(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete entries of the audit log."""
    old = sa.select(audit.c.id).where(audit.c.id < _id_at(before)).order_by(audit.c.id)
    return await _delete(connection, audit.c.id, old, limit)


async def erase_contents(connection: AsyncConnection, before: int, limit: int) -> int:
    """Erase the contents of broadcasts that have ended; their failed tasks cannot be retried any more."""
    held = broadcasts.c.finished_at.is_not(None) & broadcasts.c.erased_at.is_(None)
    ended = sa.select(broadcasts.c.id).where(held, broadcasts.c.finished_at < before)
    ids = await _chosen(connection, ended.order_by(broadcasts.c.finished_at), limit)
    if ids:
        values = {"content": b"", "erased_at": now_ms()}
        await connection.execute(sa.update(broadcasts).where(broadcasts.c.id.in_(ids)).values(values))
    return len(ids)


async def delete_broadcasts(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete broadcasts that have ended, with their counts."""
    old = sa.select(broadcasts.c.id).where(broadcasts.c.id < _id_at(before), broadcasts.c.finished_at < before)
    return await _delete(connection, broadcasts.c.id, old.order_by(broadcasts.c.id), limit)


async def delete_attachments(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete uploads whose own time (`expires_at`) is over."""
    over = sa.select(attachments.c.id).where(attachments.c.expires_at < before).order_by(attachments.c.expires_at)
    ids = await _chosen(connection, over, limit)
    if ids:
        gone = sa.delete(attachments).where(attachments.c.id.in_(ids))
        rows = await connection.execute(gone.returning(attachments.c.owner, attachments.c.size))
        await take_off_usage(connection, [(owner, size) for owner, size in rows])
    return len(ids)


async def delete_suppressions(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete suppressions whose own time (`expires_at`) is over."""
    ends = suppressions.c.expires_at
    over = sa.select(suppressions.c.address).where(ends.is_not(None), ends <= before).order_by(ends)
    return await _delete(connection, suppressions.c.address, over, limit)


async def delete_form_limits(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete counts of the public form whose window is over."""
    over = sa.select(form_limits.c.name).where(form_limits.c.ends_at <= before).order_by(form_limits.c.ends_at)
    return await _delete(connection, form_limits.c.name, over, limit)


async def delete_revoked_keys(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete API keys that were revoked; there are few, so they need no index."""
    revoked = sa.select(api_keys.c.id).where(api_keys.c.revoked_at < before)
    return await _delete(connection, api_keys.c.id, revoked, limit)


async def delete_unconfirmed(connection: AsyncConnection, before: int, limit: int) -> int:
    """Delete subscriptions whose owners were asked and never confirmed, and people who have no other.

    People who unsubscribed before they were asked stay, as unsubscribed: that must not be lost.
    """
    # A literal: SQLite uses the partial index only where it sees the value when it plans.
    pending = subscriptions.c.state == sa.literal_column(f"'{Status.PENDING.value}'")
    overdue = pending & (subscriptions.c.asked_at < before)
    found = sa.select(subscriptions.c.email).where(overdue).order_by(subscriptions.c.asked_at).limit(limit)
    emails = sorted(set((await connection.execute(found)).scalars()))
    if not emails:
        return 0
    people = sa.select(subscribers.c.email).where(subscribers.c.email.in_(emails))
    await connection.execute(people.order_by(subscribers.c.email).with_for_update())
    mine = overdue & subscriptions.c.email.in_(emails)
    left = mine & subscriptions.c.unsubscribed_at.is_not(None)
    await connection.execute(sa.update(subscriptions).where(left).values(state=Status.UNSUBSCRIBED.value))
    await connection.execute(sa.delete(subscriptions).where(mine))
    empty = ~sa.exists().where(subscriptions.c.email == subscribers.c.email)
    await connection.execute(sa.delete(subscribers).where(subscribers.c.email.in_(emails), empty))
    return len(emails)
