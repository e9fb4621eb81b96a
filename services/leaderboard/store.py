"""All SQL of the leaderboard.

The store holds results, not ranks. There is one writer at a time (SQLite by its nature, PostgreSQL by a lock that
every writing transaction takes first), so that what a transaction read before is still true when it commits.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.scores import BoardSettings
from bellhop.sql.database import Database
from services.leaderboard.tables import applied_messages, applied_scores, boards, rankings, results

LOCK = 0x6C656164  # any number would do; it names the writers' lock for ever
PAGE = 2_000  # small enough for the processor cache: larger ones take half as long again
PRUNED_AT_ONCE = 10_000

# Results are written once and read once, in order: a large page cache would be memory for nothing. And a batch touches
# most pages of a large board, so copying them from the log to the file every few batches instead of after each
# saves a fifth of the time; the log may take 160 MB of disk for it.
SQLITE_PRAGMAS = ("PRAGMA cache_size=-1000", "PRAGMA wal_autocheckpoint=40000")

Row = tuple[int, str, float, int, int]
"""ranking, player, score, at, version: a row of `results`."""

# Written in the dialects' own words: SQLAlchemy would spend more on each of 200,000 rows than the database does.
SAVE = (
    "INSERT INTO results (ranking, player, score, at, version) {} ON CONFLICT (ranking, player)"
    " DO UPDATE SET score = excluded.score, at = excluded.at, version = excluded.version"
)
SAVE_COLUMNS = SAVE.format("SELECT * FROM unnest($1::int[], $2::text[], $3::float8[], $4::bigint[], $5::int[])")
# SQLite lets go of Python's interpreter lock for each call, and getting it back from a busy thread takes milliseconds:
# `executemany`, a call for each row, slows down from 1.5 to 500 us a row. So many rows go into one call, in few sizes,
# because preparing a statement costs more than running it.
SAVE_ROWS = {size: SAVE.format("VALUES " + ", ".join(["(?, ?, ?, ?, ?)"] * size)) for size in (2000, 200, 20, 1)}

# {table}, {one}, {two}: our own names, never data. One statement for any number of ids, and it says which were new.
CLAIM = {
    "sqlite": "INSERT INTO {table} ({one}, {two}, applied_at)"
    " SELECT value ->> 0, value ->> 1, ? FROM json_each(?) WHERE true ON CONFLICT DO NOTHING RETURNING {one}, {two}",
    "postgresql": "INSERT INTO {table} ({one}, {two}, applied_at)"
    " SELECT value ->> 0, value ->> 1, $1::bigint FROM json_array_elements($2::text::json) ON CONFLICT DO NOTHING"
    " RETURNING {one}, {two}",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What the store knows of one ranking beside its results."""

    id: int
    board: str
    season: str
    players: int
    version: int
    erasures: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some results of one ranking, in columns."""

    players: Sequence[str]
    scores: Sequence[float]
    at: Sequence[int]


class Store:
    """The leaderboard's part of a database. Methods that take a connection belong inside `writing` or `reading`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        if database.dialect == "sqlite":

            @event.listens_for(database.engine.sync_engine, "connect")
            def tune(connection: Any, _record: Any) -> None:
                cursor = connection.cursor()
                for pragma in SQLITE_PRAGMAS:
                    cursor.execute(pragma)
                cursor.close()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Give the connection of the only writing transaction there is; it commits at the end."""
        async with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                await connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection whose statements all see the same state."""
        async with self._database.read() as connection:
            if self._database.dialect == "postgresql":
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    async def boards(self, connection: AsyncConnection, names: Iterable[str] | None = None) -> dict[str, BoardSettings]:
        """Return the settings of those of the boards `names` (None: of all boards) that there are."""
        chosen = sa.select(boards)
        if names is not None:
            chosen = chosen.where(boards.c.board.in_(list(names)))
        return {
            row.board: BoardSettings.model_validate(
                {"order": row.order, "operator": row.operator, "season": row.season}
            )
            for row in await connection.execute(chosen)
        }

    async def save_board(self, connection: AsyncConnection, board: str, settings: BoardSettings) -> None:
        """Write the settings of one board, new or not."""
        values = settings.model_dump(mode="json")
        insert = self._database.insert(boards).values(board=board, **values)
        await connection.execute(insert.on_conflict_do_update(index_elements=["board"], set_=values))

    async def heads_of(self, connection: AsyncConnection, names: Iterable[str]) -> dict[tuple[str, str], Head]:
        """Return the heads of all rankings of the boards `names`, by board and season."""
        return await self._heads(connection, rankings.c.board.in_(list(names)))

    async def heads_in(
        self, connection: AsyncConnection, seasons: Iterable[str], ids: Iterable[int]
    ) -> dict[tuple[str, str], Head]:
        """Return the heads of all rankings of certain `seasons`, and of those with certain `ids`."""
        return await self._heads(connection, rankings.c.season.in_(list(seasons)) | rankings.c.id.in_(list(ids)))

    async def head(self, connection: AsyncConnection, board: str, season: str) -> Head | None:
        """Return the head of one ranking."""
        wanted = (rankings.c.board == board) & (rankings.c.season == season)
        return (await self._heads(connection, wanted)).get((board, season))

    async def _heads(self, connection: AsyncConnection, wanted: Any) -> dict[tuple[str, str], Head]:
        rows = await connection.execute(sa.select(rankings).where(wanted))
        return {(row.board, row.season): Head(**row._mapping) for row in rows}

    async def new_head(self, connection: AsyncConnection, board: str, season: str) -> Head:
        """Begin a ranking."""
        head = {"board": board, "season": season, "players": 0, "version": 0, "erasures": 0}
        id = await connection.scalar(sa.insert(rankings).values(head).returning(rankings.c.id))
        return Head(id=id, **head)  # type: ignore[arg-type]

    async def save_head(self, connection: AsyncConnection, head: Head) -> None:
        """Write the counters of a ranking."""
        counters = {"players": head.players, "version": head.version, "erasures": head.erasures}
        await connection.execute(sa.update(rankings).where(rankings.c.id == head.id).values(counters))

    async def results(self, connection: AsyncConnection, ranking: int, since: int = 0) -> AsyncIterator[Page]:
        """Return all results that came with a version later than `since`, page by page."""
        chosen = sa.select(results.c.player, results.c.score, results.c.at).where(
            results.c.ranking == ranking, results.c.version > since
        )
        rows = await connection.stream(chosen, execution_options={"yield_per": PAGE})
        async for page in rows.partitions(PAGE):
            players, scores, at = zip(*page, strict=True)
            yield Page(players, scores, at)

    async def save_results(self, connection: AsyncConnection, rows: list[Row]) -> None:
        """Write results, new or not. Rows in the order of (ranking, player) touch each page of the table once."""
        if self._database.dialect == "postgresql":
            await connection.exec_driver_sql(SAVE_COLUMNS, tuple(map(list, zip(*rows, strict=True))))
            return
        begin = 0
        for size, statement in SAVE_ROWS.items():
            while len(rows) - begin >= size:
                values = tuple(chain.from_iterable(rows[begin : begin + size]))
                await connection.exec_driver_sql(statement, values)
                begin += size

    async def erase(self, connection: AsyncConnection, ranking: int, player: str) -> bool:
        """Delete the result of a player; say whether there was one."""
        theirs = (results.c.ranking == ranking) & (results.c.player == player)
        return (await connection.execute(sa.delete(results).where(theirs))).rowcount > 0

    async def claim_messages(
        self, connection: AsyncConnection, keys: list[tuple[str, str]], at: int
    ) -> set[tuple[str, str]]:
        """Note (source, id) of messages as applied; return those that were not yet."""
        return await self._claim(connection, applied_messages, ("source", "id"), keys, at)

    async def claim_scores(
        self, connection: AsyncConnection, keys: list[tuple[str, str]], at: int
    ) -> set[tuple[str, str]]:
        """Note (board, id) of scores as applied; return those that were not yet."""
        return await self._claim(connection, applied_scores, ("board", "id"), keys, at)

    async def _claim(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        columns: tuple[str, str],
        keys: list[tuple[str, str]],
        at: int,
    ) -> set[tuple[str, str]]:
        statement = CLAIM[self._database.dialect].format(table=table.name, one=columns[0], two=columns[1])
        rows: Any = await connection.exec_driver_sql(statement, (at, orjson.dumps(keys).decode()))
        return {(one, two) for one, two in rows}

    async def prune(self, before: int) -> int:
        """Forget what was applied earlier than `before`, a part at a time; return how many ids were forgotten."""
        forgotten = 0
        for table in (applied_messages, applied_scores):
            columns = list(table.primary_key.columns)
            key = sa.tuple_(*columns)
            old = sa.select(*columns).where(table.c.applied_at < before).limit(PRUNED_AT_ONCE)
            while True:
                async with self._database.write() as connection:
                    deleted = (await connection.execute(sa.delete(table).where(key.in_(old)))).rowcount
                forgotten += deleted
                if deleted < PRUNED_AT_ONCE:
                    break
        return forgotten
