"""Heartbeats: which replicas are alive.

A claim has no expiry of its own, because an attempt may rightly take ten minutes. A claim that expired sooner would
run twice, and one that expired later would delay the task of a crashed replica for as long. A heartbeat is one small
write every few seconds under any load, and a crash is noticed within about `LEASE_SECONDS`.

No two clocks are compared. Each replica watches the heartbeats of the others. A replica is dead when its heartbeat
has not changed for `LEASE_SECONDS` of the watcher's monotonic time. So clocks may differ, and may be set at any time.
The price: a replica that has just started waits that long before it takes over the claims of a crashed one.
"""

import time

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import BACKGROUND_SECONDS, Database

LEASE_SECONDS = 10.0
REPLICA_SECONDS = 86_400.0
"""Heartbeats that ended are deleted after this time."""


class Heartbeats:
    """The heartbeats of all replicas, as seen by one of them."""

    def __init__(self, database: Database, table: sa.Table, owner: str) -> None:
        """`owner` is the id of this process; see `Inbox`."""
        self._database = database
        self._table = table
        self._owner = owner
        self._beaten_at = float("-inf")
        self._seen: dict[str, tuple[float, float]] = {}  # by owner: the last heartbeat, and since when we know it
        self._looked_at = float("-inf")

    @property
    def fresh(self) -> bool:
        """Return whether this replica is alive for the others; if not, they may take over its claims."""
        return time.monotonic() - self._beaten_at < LEASE_SECONDS

    async def beat(self) -> None:
        """Store a heartbeat, by which the other replicas see that this one is alive.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        before = time.monotonic()
        statement = self._database.insert(self._table).values(owner=self._owner, seen_at=self._database.clock)
        async with self._database.write() as connection:
            await connection.execute(
                statement.on_conflict_do_update(
                    index_elements=[self._table.c.owner], set_={"seen_at": statement.excluded.seen_at}
                )
            )
            await self.alive(connection)  # a replica must be watched before a claim asks for it
        self._beaten_at = before

    async def alive(self, connection: AsyncConnection) -> set[str]:
        """Return the owners whose heartbeat has changed within the last `LEASE_SECONDS` of our watch."""
        found = await connection.execute(sa.select(self._table.c.owner, self._table.c.seen_at))
        now = time.monotonic()
        # While the database hung, no heartbeat was written: the watch begins again.
        before = self._seen if now - self._looked_at < LEASE_SECONDS / 2 else {}
        self._looked_at, self._seen = now, {}
        for owner, beat in found:
            last, since = before.get(owner, (None, now))
            self._seen[owner] = (beat, since if last == beat else now)
        return {owner for owner, (_, since) in self._seen.items() if now - since < LEASE_SECONDS}

    async def end(self) -> None:
        """Delete our own heartbeat: other replicas may take over our claims immediately."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(self._table).where(self._table.c.owner == self._owner))

    async def delete_old(self) -> None:
        """Delete heartbeats that ended long ago."""
        async with self._database.write(BACKGROUND_SECONDS) as connection:
            old = self._table.c.seen_at < self._database.clock - REPLICA_SECONDS
            alive = await self.alive(connection)  # the clock may have been set
            await connection.execute(sa.delete(self._table).where(old, self._table.c.owner.not_in(alive)))
