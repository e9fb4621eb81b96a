"""Idempotency keys: the database decides which of several requests under one key has the effect.

A request that writes its effect to this database writes its key in the same transaction (`ledger.accept`), with the
answer. Every other request reserves its key first (`reserve`), and stores its answer when it is done (`finish`). A
reservation is a lease: when a gateway stops in between, the next request under the key takes the lease over, once it
expired, and is executed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import new_id
from bellhop.sql.bulk import insert_many
from services.gateway.outbox.store import now_ms
from services.gateway.tables import idempotency_keys

IN_PROGRESS = 0
"""The status of a request that was not answered yet."""
LEASE_MS = 60_000

_T = idempotency_keys.c


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one request; `owner` keeps the names of different clients apart."""

    owner: str
    key: str
    fingerprint: str
    """SHA-256 of what was asked; another request under the same key is a mistake of the client's."""
    id: str = field(default_factory=new_id)
    """Of this attempt: it tells whose row is stored."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database holds under a key."""

    id: str
    fingerprint: str
    status: int
    """Of the answer; `IN_PROGRESS` where there is none yet."""
    answer: bytes
    """The body; empty where it holds a secret and is made again from `id` and `created_at`."""
    location: str | None
    created_at: int
    leased_until: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """What `reserve` found."""

    stored: Stored
    ours: bool
    """Whether the caller is the one to execute the request."""


Name = tuple[str, str]
"""Owner and key."""


async def store(
    connection: AsyncConnection,
    keys: Sequence[IdempotencyKey],
    answers: Sequence[bytes],
    status: int,
    lease: int = 0,
) -> dict[Name, Stored]:
    """Store each key unless it is stored already; return what is stored under all of them.

    Whose `id` a row has was first, whatever other transactions do at the same time. Two statements for any number.
    """
    created_at = now_ms()
    rows = {
        key.id: {
            "owner": key.owner,
            "key": key.key,
            "fingerprint": key.fingerprint,
            "answer": answer,
            "created_at": created_at,
            "id": key.id,
            "status": status,
            "leased_until": lease,
        }
        for key, answer in zip(keys, answers, strict=True)
    }
    found: dict[Name, Stored] = {}
    # In order, so that two gateways that store the same keys never wait for each other.
    waiting = sorted(keys, key=lambda key: (key.owner, key.key))
    while waiting:
        await insert_many(connection, idempotency_keys, [rows[key.id] for key in waiting], on_conflict="DO NOTHING")
        found |= await read(connection, [(key.owner, key.key) for key in waiting])
        # Missing is one that was purged in between.
        waiting = [key for key in waiting if (key.owner, key.key) not in found]
    return found


async def read(connection: AsyncConnection, names: list[Name]) -> dict[Name, Stored]:
    """Return what is stored under these keys."""
    columns = (_T.id, _T.fingerprint, _T.status, _T.answer, _T.location, _T.created_at, _T.leased_until)
    rows = await connection.execute(sa.select(_T.owner, _T.key, *columns).where(sa.tuple_(_T.owner, _T.key).in_(names)))
    return {(owner, key): Stored(*values) for owner, key, *values in rows}


async def reserve(connection: AsyncConnection, keys: list[IdempotencyKey]) -> list[Reserved]:
    """Reserve keys for requests that are about to be executed; for `GroupCommit`."""
    lease = now_ms() + LEASE_MS
    found = await store(connection, keys, [b""] * len(keys), IN_PROGRESS, lease)
    results = []
    for key in keys:
        stored = found[key.owner, key.key]
        ours = stored.id == key.id
        if not ours and stored.fingerprint == key.fingerprint and await _take_over(connection, stored, lease):
            ours = True
        results.append(Reserved(stored, ours))
    return results


async def _take_over(connection: AsyncConnection, stored: Stored, lease: int) -> bool:
    if stored.status != IN_PROGRESS or stored.leased_until > now_ms():
        return False
    row = (_T.id == stored.id) & (_T.status == IN_PROGRESS) & (_T.leased_until == stored.leased_until)
    taken = await connection.execute(sa.update(idempotency_keys).where(row).values(leased_until=lease))
    return bool(taken.rowcount)


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reservation."""

    key: IdempotencyKey
    id: str
    """Of the stored row."""
    status: int = IN_PROGRESS
    """Of the answer to store; `IN_PROGRESS` gives the key back, because the request had no effect."""
    answer: bytes = b""
    location: str | None = None


async def finish(connection: AsyncConnection, items: list[Finished]) -> list[None]:
    """End reservations; for `GroupCommit`."""
    for item in items:
        row = (_T.owner == item.key.owner) & (_T.key == item.key.key) & (_T.id == item.id)
        change: Any = sa.delete(idempotency_keys)
        if item.status != IN_PROGRESS:
            change = sa.update(idempotency_keys).values(status=item.status, answer=item.answer, location=item.location)
        await connection.execute(change.where(row, _T.status == IN_PROGRESS))
    return [None] * len(items)
