"""All SQL of rate limits. Every row is locked in the order of names, so that replicas never deadlock.

All times are those of the database's clock, which may be set. Each row says when it was last used (`asked_at`). If that
is in the future, the clock was set back, and all times of the row move back by the same amount. So a queue of
reservations and a pause stay as long as they were.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import BACKGROUND_SECONDS, Database
from bellhop.tasks import adaptive_rate
from bellhop.tasks.adaptive_rate import Change, Lowered

BURST_SECONDS = 1.0
"""Slots that were not reserved stay free for this time."""
KEEP_SECONDS = 7 * 86_400.0
"""A limit that was not used for this time is deleted."""
DELETED_PER_TRANSACTION = 1000

_LOWERED = tuple(Lowered.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Request:
    """Ask for one slot of the limit `name`, which has `rate` slots a second."""

    name: str
    rate: float


class RateStore:
    """The table of limits. `reserve`, `lower` and `reset_strikes` run inside the transaction of a group commit."""

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._database = database
        self._table = table
        self._insert = database.insert(table).on_conflict_do_nothing()
        self._offset = 0.0  # of the database's clock to our monotonic one; each use of it measures the offset

    @property
    def now(self) -> float:
        """The time of the database's clock."""
        return time.monotonic() + self._offset

    async def reserve(self, connection: AsyncConnection, requests: list[Request]) -> list[tuple[float, int]]:
        """Reserve a slot for each request; return how many seconds from now it is, and the limit's generation."""
        columns = self._table.c
        rates = {request.name: request.rate for request in requests}
        counts = Counter(request.name for request in requests)
        slots: dict[str, list[tuple[float, int]]] = {}
        for name in sorted(counts):
            await self._ensure(connection, name)
            clock = self._database.clock
            next_at, earliest = self._shifted(columns.next_at), clock - BURST_SECONDS
            step = 1 / rates[name]
            taken = await connection.execute(
                sa.update(self._table)
                .where(columns.name == name)
                .values(
                    next_at=sa.case((next_at > earliest, next_at), else_=earliest) + counts[name] * step,
                    climbs_from=self._shifted(columns.climbs_from),
                    paused_until=self._shifted(columns.paused_until),
                    asked_at=clock,
                )
                .returning(columns.next_at, columns.generation, columns.asked_at)
            )
            end, generation, now = taken.one()
            self._measure(now)
            slots[name] = [(end - now - number * step, generation) for number in range(1, counts[name] + 1)]
        return [slots[request.name].pop() for request in requests]

    async def lower(self, connection: AsyncConnection, changes: list[Change]) -> list[Lowered | None]:
        """Lower each rate; None where another replica, or an earlier change, has just lowered it."""
        columns = self._table.c
        done: list[Lowered | None] = []
        for change in changes:
            await self._ensure(connection, change.name)
            found = await connection.execute(
                sa.select(
                    columns.generation, columns.rate, columns.strikes,
                    self._shifted(columns.climbs_from).label("climbs_from"), self._database.clock.label("now"),
                )
                .where(columns.name == change.name)
                .with_for_update()
            )  # fmt: skip
            row = found.one()
            now = row.now
            self._measure(now)
            if adaptive_rate.is_settling(row.rate, row.climbs_from, now):
                done.append(None)
                continue
            values = adaptive_rate.lowered_values(change, row, now)
            changed = await connection.execute(
                sa.update(self._table)
                .where(columns.name == change.name)
                .values(generation=row.generation + 1, asked_at=now, **values)
                .returning(*(columns[name] for name in _LOWERED))
            )
            done.append(Lowered(*changed.one()))
        return done

    async def reset_strikes(self, connection: AsyncConnection, names: list[str]) -> list[None]:
        """Let the next pause of these limits be a short one."""
        await connection.execute(sa.update(self._table).where(self._table.c.name.in_(names)).values(strikes=0))
        return [None] * len(names)

    async def load(self) -> dict[str, Lowered]:
        """Return the limits that any replica lowered and that have not climbed back yet.

        Raises:
            DatabaseUnavailable: they could not be read.
        """
        columns = self._table.c
        async with self._database.read() as connection:
            clock = self._database.clock
            self._measure((await connection.execute(sa.select(clock))).scalar_one())
            climbs_from, paused_until = map(self._shifted, (columns.climbs_from, columns.paused_until))
            shifted = {"climbs_from": climbs_from, "paused_until": paused_until}
            found = await connection.execute(
                sa.select(columns.name, *(shifted.get(name, columns[name]) for name in _LOWERED)).where(
                    climbs_from > clock - adaptive_rate.CLIMBED_SECONDS
                )
            )
            return {name: Lowered(*values) for name, *values in found}

    async def delete_old(self) -> None:
        """Delete limits that were not used for `KEEP_SECONDS`."""
        columns = self._table.c
        old = self._database.clock - KEEP_SECONDS
        unused = sa.select(columns.name).where(columns.next_at < old, columns.climbs_from < old)
        deleted = DELETED_PER_TRANSACTION
        while deleted == DELETED_PER_TRANSACTION:
            async with self._database.write(BACKGROUND_SECONDS) as connection:
                rows = await connection.execute(unused.limit(DELETED_PER_TRANSACTION).with_for_update(skip_locked=True))
                names = list(rows.scalars())
                if names:
                    await connection.execute(sa.delete(self._table).where(columns.name.in_(names)))
            deleted = len(names)

    async def _ensure(self, connection: AsyncConnection, name: str) -> None:
        """Insert the row of a limit if there is none."""
        zero: dict[str, Any] = dict.fromkeys(("next_at", "climbs_from", "paused_until", "asked_at"), 0.0)
        await connection.execute(self._insert, [zero | {"name": name, "generation": 0, "strikes": 0}])

    def _shifted(self, column: sa.Column[float]) -> sa.ColumnElement[float]:
        """Return a time of a row as an SQL expression, moved back by as much as the clock was set back.

        The clock of a transaction that waited for the row is never behind, so without a setback nothing moves.
        """
        asked_at, clock = self._table.c.asked_at, self._database.clock
        return column - sa.case((asked_at > clock, asked_at - clock), else_=0.0)

    def _measure(self, now: float) -> None:
        self._offset = now - time.monotonic()
