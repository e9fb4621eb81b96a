"""API keys: only their hashes are kept."""

from typing import Any

import sqlalchemy as sa

from bellhop.sql.database import Database
from bellhop.web.auth import Caller, Scope, hash_key, key_matches, new_key, split_key
from services.gateway.store.outbox import now_ms
from services.gateway.store.tables import api_keys


class Keys:
    """The clients of the gateway."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str) -> Caller | None:
        """Return whom `key` belongs to; None where it is unknown or revoked."""
        parts = split_key(key)
        if parts is None:
            return None
        query = sa.select(api_keys).where(api_keys.c.id == parts[0], api_keys.c.revoked_at.is_(None))
        async with self._database.read() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None or not key_matches(parts[1], row["hash"]):
            return None
        return Caller(row["id"], row["name"], frozenset(row["scopes"].split()))

    async def create(self, name: str, scopes: list[Scope]) -> tuple[str, str]:
        """Make a key; return its id and the key itself, which cannot be read again."""
        key = new_key()
        async with self._database.write() as connection:
            await connection.execute(sa.insert(api_keys).values(_row(key, name, scopes)))
        return key[3:11], key

    async def ensure_admin(self, key: str) -> None:
        """Make sure that the administrator's key, and no former one, opens everything."""
        row = _row(key, "admin", [Scope.ADMIN])
        async with self._database.write() as connection:
            await connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.name == "admin", api_keys.c.id != row["id"], api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )
            insert = self._database.insert(api_keys).values(row)
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["id"], set_={"hash": row["hash"], "revoked_at": None})
            )

    async def all(self) -> list[dict[str, Any]]:
        """Return all keys without anything secret."""
        columns = (api_keys.c.id, api_keys.c.name, api_keys.c.scopes, api_keys.c.created_at, api_keys.c.revoked_at)
        async with self._database.read() as connection:
            rows = await connection.execute(sa.select(*columns).order_by(api_keys.c.created_at))
            return [dict(row) for row in rows.mappings()]

    async def revoke(self, key_id: str) -> bool:
        """Close a key from now on; say whether it was open."""
        async with self._database.write() as connection:
            done = await connection.execute(
                sa.update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now_ms())
            )
            return bool(done.rowcount)


def _row(key: str, name: str, scopes: list[Scope]) -> dict[str, Any]:
    parts = split_key(key)
    if parts is None:
        raise ValueError("an API key looks like bh_<8 characters>_<43 characters>")
    return {
        "id": parts[0],
        "name": name,
        "hash": hash_key(parts[1]),
        "scopes": " ".join(scopes),
        "created_at": now_ms(),
        "revoked_at": None,
    }
