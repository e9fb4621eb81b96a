"""Idempotency keys: the database decides which of several requests under one key has the effect.

A request that writes its effect to this database writes its key in the same transaction (`ledger.accept`), with the
answer. Every other request reserves its key first (`reserve`), and stores its answer when it is done (`finish`). The
transaction of its effect notes that there was one (`note_effect`).

A reservation is a lease, by the database's clock. It ends early when the result of a commit is unknown. Then the next
request under the key is executed if there was no effect, and otherwise gets an error that says so. If the holder of a
lease is slow and another request took it over, only one of them can write: `note_effect` fails for the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import new_id
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import DatabaseUnavailable, clock_ms
from services.gateway.outbox.store import now_ms
from services.gateway.tables import idempotency_keys

IN_PROGRESS = 0
"""The status of a request in progress that has had no effect."""
TOOK_EFFECT = 1
"""The status of a request in progress that has had an effect."""
LEASE_MS = 60_000

_T = idempotency_keys.c


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's name for one request; `owner` keeps the names of different clients apart."""

    owner: str
    key: str
    fingerprint: str
    """SHA-256 of the request; another request under the same key is the client's mistake."""
    id: str = field(default_factory=new_id)
    """Of this attempt: it shows whose row is stored."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What the database holds under a key."""

    id: str
    fingerprint: str
    status: int
    """Of the answer; `IN_PROGRESS` or `TOOK_EFFECT` where there is none yet."""
    answer: bytes
    """The body; empty where it holds a secret and is made again from `id` and `created_at`."""
    location: str | None
    created_at: int
    leased_until: int


class KeyDecision(Enum):
    """How a request under a key continues."""

    EXECUTE = "execute"
    WAIT = "wait"
    """Another request under the key is executed."""
    REPEAT_ANSWER = "repeat answer"
    ANSWER_LOST = "answer lost"
    """An earlier request under the key took effect, and its answer is unknown."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What `reserve` found."""

    stored: StoredKey
    decision: KeyDecision


Name = tuple[str, str]
"""Owner and key."""


async def store(
    connection: AsyncConnection,
    keys: Sequence[IdempotencyKey],
    answers: Sequence[bytes],
    status: int,
    lease: int = 0,
) -> dict[Name, StoredKey]:
    """Store each key unless it is stored already; return what is stored under all of them.

    The request whose `id` a row has was first, even with concurrent transactions. Two statements for any number.
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
    found: dict[Name, StoredKey] = {}
    # In order, so that two gateways that store the same keys never wait for each other.
    waiting = sorted(keys, key=lambda key: (key.owner, key.key))
    while waiting:
        await insert_many(connection, idempotency_keys, [rows[key.id] for key in waiting], on_conflict="DO NOTHING")
        found |= await read(connection, [(key.owner, key.key) for key in waiting])
        # A missing key was deleted in between.
        waiting = [key for key in waiting if (key.owner, key.key) not in found]
    return found


async def read(connection: AsyncConnection, names: list[Name]) -> dict[Name, StoredKey]:
    """Return what is stored under these keys."""
    columns = (_T.id, _T.fingerprint, _T.status, _T.answer, _T.location, _T.created_at, _T.leased_until)
    rows = await connection.execute(sa.select(_T.owner, _T.key, *columns).where(sa.tuple_(_T.owner, _T.key).in_(names)))
    return {(owner, key): StoredKey(*values) for owner, key, *values in rows}


async def reserve(connection: AsyncConnection, keys: list[IdempotencyKey]) -> list[Reserved]:
    """Reserve keys for requests that are about to be executed; for `GroupCommit`."""
    current = await clock_ms(connection)
    lease = current + LEASE_MS
    # An insert would wait for the transaction that notes the effect of another request under the same key.
    found = await read(connection, [(key.owner, key.key) for key in keys])
    new = [key for key in keys if (key.owner, key.key) not in found]
    found |= await store(connection, new, [b""] * len(new), IN_PROGRESS, lease)
    results = []
    for key in keys:
        stored = found[key.owner, key.key]
        if stored.id == key.id:
            decision = KeyDecision.EXECUTE
        elif stored.status not in (IN_PROGRESS, TOOK_EFFECT):
            decision = KeyDecision.REPEAT_ANSWER
        elif stored.leased_until > current:
            decision = KeyDecision.WAIT
        elif stored.status == TOOK_EFFECT:
            decision = KeyDecision.ANSWER_LOST
        elif stored.fingerprint == key.fingerprint and await _change(connection, key, stored, leased_until=lease):
            stored, decision = replace(stored, leased_until=lease), KeyDecision.EXECUTE
        else:
            decision = KeyDecision.WAIT
        results.append(Reserved(stored, decision))
    return results


def _held(key: IdempotencyKey, stored: StoredKey) -> sa.ColumnElement[bool]:
    """Return the condition for the row of a reservation that was neither taken over nor ended."""
    lease = (_T.id == stored.id) & (_T.leased_until == stored.leased_until)
    return (_T.owner == key.owner) & (_T.key == key.key) & lease & _T.status.in_((IN_PROGRESS, TOOK_EFFECT))


async def _change(connection: AsyncConnection, key: IdempotencyKey, stored: StoredKey, **values: Any) -> bool:
    """Change the row of a reservation, or without `values` delete it; return whether that was done.

    Not while it is locked: a transaction that records an effect may be open, even after its client has disconnected.
    """
    held = _held(key, stored)
    if await connection.scalar(sa.select(_T.status).where(held).with_for_update(skip_locked=True)) is None:
        return False
    change = sa.update(idempotency_keys).values(values) if values else sa.delete(idempotency_keys)
    await connection.execute(change.where(held))
    return True


async def note_effect(connection: AsyncConnection, key: IdempotencyKey, stored: StoredKey) -> None:
    """Note that this transaction is an effect of the request that holds a reservation.

    Raises:
        DatabaseUnavailable: it does not hold it any more.
    """
    noted = await connection.execute(sa.update(idempotency_keys).where(_held(key, stored)).values(status=TOOK_EFFECT))
    if not noted.rowcount:
        raise DatabaseUnavailable("this took so long that another request under the Idempotency-Key may have begun")


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reservation."""

    key: IdempotencyKey
    stored: StoredKey
    status: int | None
    """Of the answer to store; None releases the key, because the request was refused.

    `IN_PROGRESS` ends the lease: its row shows whether the request had its effect.
    """
    answer: bytes = b""
    location: str | None = None


async def finish(connection: AsyncConnection, items: list[Finished]) -> list[None]:
    """End reservations; for `GroupCommit`."""
    for item in items:
        values: dict[str, Any] = {"status": item.status, "answer": item.answer, "location": item.location}
        if item.status is None:
            values = {}
        elif item.status == IN_PROGRESS:
            values = {"leased_until": 0}
        await _change(connection, item.key, item.stored, **values)
    return [None] * len(items)
