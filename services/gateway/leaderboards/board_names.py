"""The names of leaderboards, and the client that created each: quotas for new boards are counted from them.

The leaderboard gets a board's scores seconds after they were accepted, which is too late to refuse them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from services.gateway.outbox.store import now_ms
from services.gateway.tables import board_names

HOUR_MS = 3_600_000
FOUND = ""
"""The owner of boards that are older than this table; no key has that name."""

_LOCK = 0x626F6172  # an arbitrary number: the lock allows one transaction at a time to count and then insert


@dataclass(frozen=True, slots=True)
class RemainingQuota:
    """How many boards a client may still create."""

    this_hour: int
    hour_ends_in: int
    """Seconds until a further board may be created, where `this_hour` is 0."""
    in_all: int
    together: int
    """All keys together."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many new boards are allowed."""

    per_hour: int
    per_key: int
    together: int


class BoardNames:
    """The names of boards, shared by all gateways."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def known(self, names: Iterable[str]) -> set[str]:
        """Return those of `names` that are boards."""
        query = sa.select(board_names.c.board).where(board_names.c.board.in_(list(names)))
        async with self._database.read() as connection:
            return set((await connection.execute(query)).scalars())

    async def created_at(self, name: str) -> int | None:
        """Return when a board was created, in milliseconds since 1970; None where there is none."""
        query = sa.select(board_names.c.created_at).where(board_names.c.board == name)
        async with self._database.read() as connection:
            at: int | None = await connection.scalar(query)
            return at

    async def create(
        self, names: list[str], owner: str, quotas: Quotas | None
    ) -> tuple[list[str], RemainingQuota | None]:
        """Record that `owner` creates boards: all new ones, or none if `quotas` do not allow it.

        Returns:
            The new ones, and None; or the new ones, and the remaining quota, which is too small.
        """
        async with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                await connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            query = sa.select(board_names.c.board).where(board_names.c.board.in_(names))
            known = set((await connection.execute(query)).scalars())
            new = [name for name in names if name not in known]
            current = now_ms()
            if new and quotas is not None:
                remaining = await self._remaining(connection, owner, quotas, current)
                if len(new) > min(remaining.this_hour, remaining.in_all, remaining.together):
                    return new, remaining
            rows = [{"board": name, "owner": owner, "created_at": current} for name in new]
            await insert_many(connection, board_names, rows, on_conflict="(board) DO NOTHING")
            return new, None

    async def _remaining(self, connection: AsyncConnection, owner: str, quotas: Quotas, current: int) -> RemainingQuota:
        theirs = board_names.c.owner == owner
        lately = theirs & (board_names.c.created_at > current - HOUR_MS)
        count = sa.select(sa.func.count()).select_from(board_names)
        oldest = sa.select(sa.func.min(board_names.c.created_at)).where(lately)
        begun = await connection.scalar(oldest)
        return RemainingQuota(
            quotas.per_hour - (await connection.scalar(count.where(lately)) or 0),
            max(1, (begun + HOUR_MS - current) // 1000) if begun is not None else 1,
            quotas.per_key - (await connection.scalar(count.where(theirs)) or 0),
            quotas.together - (await connection.scalar(count) or 0),
        )

    async def add_existing(self, names: list[str]) -> None:
        """Note boards that the leaderboard has; they count for no client's quota."""
        rows = [{"board": name, "owner": FOUND, "created_at": 0} for name in names]
        async with self._database.write() as connection:
            await insert_many(connection, board_names, rows, on_conflict="(board) DO NOTHING")

    async def remove(self, name: str) -> None:
        """Delete the name of a deleted board."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(board_names).where(board_names.c.board == name))
