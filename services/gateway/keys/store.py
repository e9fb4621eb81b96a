"""API keys: only their hashes are stored."""

from dataclasses import asdict, dataclass
from enum import StrEnum

import sqlalchemy as sa

from bellhop.contracts.identity import ADMIN
from bellhop.sql.database import Database
from bellhop.sql.rows import columns_of
from bellhop.web.auth import Caller, Scope, hash_key, key_matches, split_key
from services.gateway.outbox.store import now_ms
from services.gateway.tables import api_keys


class Revocation(StrEnum):
    """The result of a request to revoke a key."""

    DONE = "done"
    UNKNOWN = "unknown"
    """There is no such key, or it is revoked already."""
    BEYOND = "beyond"
    """The key has scopes that the caller lacks."""
    LAST_ADMIN = "last-admin"
    """No other key with the scope `admin` is left."""


@dataclass(frozen=True, slots=True)
class KeyRow:
    """One key, without its secret."""

    id: str
    name: str
    scopes: str
    """Names with blanks between them."""
    created_at: int
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class _SecretKeyRow(KeyRow):
    hash: str


class Keys:
    """The store behind `/v1/keys`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str) -> Caller | None:
        """Return the caller of `key`; None if it is unknown or revoked."""
        parts = split_key(key)
        if parts is None:
            return None
        query = sa.select(api_keys).where(api_keys.c.id == parts[0], api_keys.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None or not key_matches(parts[1], row["hash"]):
            return None
        return Caller(row["id"], row["name"], frozenset(row["scopes"].split()))

    async def create(self, name: str, scopes: list[Scope], key: str) -> None:
        """Store `key`, unless it is stored already."""
        row = _row(key, name, scopes)
        async with self._database.write() as connection:
            await connection.execute(self._database.insert(api_keys).values(asdict(row)).on_conflict_do_nothing())
            kept = await connection.scalar(sa.select(api_keys.c.hash).where(api_keys.c.id == row.id))
        if kept != row.hash:
            raise RuntimeError("two keys got the same id by chance; the next one will not")

    async def scopes_of(self, name: str) -> set[str]:
        """Return all scopes that the open keys of `name` have together."""
        query = sa.select(api_keys.c.scopes).where(api_keys.c.name == name, api_keys.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            return {scope for scopes in (await connection.execute(query)).scalars() for scope in scopes.split()}

    async def names(self) -> set[str]:
        """Return the names of all open keys."""
        query = sa.select(api_keys.c.name).where(api_keys.c.revoked_at.is_(None)).distinct()
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def ensure_admin(self, key: str) -> None:
        """Make sure that the administrator's present key, and no former one, has the scope `admin`."""
        row = _row(key, ADMIN, [Scope.ADMIN])
        async with self._database.write() as connection:
            await connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.name == ADMIN, api_keys.c.id != row.id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )
            insert = self._database.insert(api_keys).values(asdict(row))
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["id"], set_={"hash": row.hash, "revoked_at": None})
            )

    async def all(self) -> list[KeyRow]:
        """Return all keys without anything secret."""
        query = sa.select(*columns_of(api_keys, KeyRow)).order_by(api_keys.c.created_at)
        async with self._database.read() as connection:
            return [KeyRow(*row) for row in await connection.execute(query)]

    async def revoke(self, key_id: str, by: Caller) -> tuple[Revocation, list[str]]:
        """Revoke a key, if `by` has all of its scopes; return the result, and the scopes that `by` lacks."""
        is_open = api_keys.c.revoked_at.is_(None)
        async with self._database.write() as connection:
            # In order and locked, so that of two administrators who revoke each other only one succeeds.
            query = (
                sa.select(api_keys.c.id, api_keys.c.scopes)
                .where(is_open, (api_keys.c.id == key_id) | api_keys.c.scopes.contains(Scope.ADMIN.value))
                .order_by(api_keys.c.id)
                .with_for_update()
            )
            scopes = {row.id: row.scopes.split() for row in await connection.execute(query)}
            if key_id not in scopes:
                return Revocation.UNKNOWN, []
            if lacking := by.lacks(scopes[key_id]):
                return Revocation.BEYOND, lacking
            administrators = {each for each, its in scopes.items() if Scope.ADMIN in its}
            if administrators == {key_id}:
                return Revocation.LAST_ADMIN, []
            await connection.execute(sa.update(api_keys).where(api_keys.c.id == key_id).values(revoked_at=now_ms()))
            return Revocation.DONE, []


def _row(key: str, name: str, scopes: list[Scope]) -> _SecretKeyRow:
    parts = split_key(key)
    if parts is None:
        raise ValueError("an API key looks like bh_<8 characters>_<43 characters>")
    return _SecretKeyRow(
        id=parts[0],
        name=name,
        hash=hash_key(parts[1]),
        scopes=" ".join(scopes),
        created_at=now_ms(),
        revoked_at=None,
    )
