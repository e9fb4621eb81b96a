"""The event types that mail templates name, as the mailers announce them."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import Database
from services.gateway.outbox.routing import Routing
from services.gateway.outbox.store import now_ms
from services.gateway.tables import reaction_types

FORGET_MS = 3_600_000
"""A type that no mailer has announced for so long, while mailers announced others, is no longer reacted to."""


class ReactionTypes:
    """Stores them in a table, for all gateways, and in memory, for routing."""

    def __init__(self, database: Database, routing: Routing) -> None:
        self._database = database
        self._routing = routing

    @property
    def known(self) -> list[str]:
        """Return the types by which events are routed to the mailer now."""
        return self._routing.reactions

    async def announce(self, connection: AsyncConnection, items: list[list[str]]) -> list[None]:
        """Note the types that mailers react to now. Idempotent; types of replicas with other templates stay."""
        current = now_ms()
        # In the same order everywhere, to avoid deadlocks.
        types = sorted({name for item in items for name in item})
        if types:
            insert = self._database.insert(reaction_types)
            await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["type"], set_={"announced_at": insert.excluded.announced_at}
                ),
                [{"type": name, "announced_at": current} for name in types],
            )
        await connection.execute(sa.delete(reaction_types).where(reaction_types.c.announced_at < current - FORGET_MS))
        return [None] * len(items)

    async def load(self) -> None:
        """Route events by the present rows of the table. Raises DatabaseUnavailable."""
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(reaction_types.c.type))
            self._routing.react_to(found.scalars())
