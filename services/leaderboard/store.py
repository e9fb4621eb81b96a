"""All SQL of the leaderboard.

The store holds results, not ranks. There is one writer at a time (SQLite by its nature, PostgreSQL by a lock that
every writing transaction takes first), so that what a transaction read before is still true when it commits.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.scores import BoardSettings
from bellhop.sql.database import BACKGROUND_SECONDS, Database
from services.leaderboard.tables import (
    applied_messages,
    applied_scores,
    boards,
    deleted_boards,
    discarded_rankings,
    postponed_messages,
    progress,
    rankings,
    results,
)

LOCK = 0x6C656164  # the writers' lock; the number is arbitrary and must never change
PAGE = 2_000  # small enough for the processor cache: larger ones take half as long again
PRUNE_BATCH_ROWS = 10_000

# Results are written once and read once, in order, so a large page cache would be of no use. A batch changes most pages
# of a large board: a checkpoint every few batches, instead of after each, saves a fifth of the time, and the log takes
# up to 160 MB of disk.
SQLITE_PRAGMAS = ("PRAGMA cache_size=-1000", "PRAGMA wal_autocheckpoint=40000")

Row = tuple[int, str, float, int, int]
"""ranking, player, score, at, version: a row of `results`."""

SumRow = tuple[int, str, float, int, int, int]
"""ranking, player, score, at, version, rest: a row of `results` on a board that adds up."""

# Plain SQL: SQLAlchemy would spend more on each of 200,000 rows than the database does.
SAVE = (
    "INSERT INTO results (ranking, player, score, at, version) {} ON CONFLICT (ranking, player)"
    " DO UPDATE SET score = excluded.score, at = excluded.at, version = excluded.version"
)
# Of boards that add up.
SAVE_SUMS = (
    "INSERT INTO results (ranking, player, score, at, version, rest) {} ON CONFLICT (ranking, player) DO UPDATE SET"
    " score = excluded.score, at = excluded.at, version = excluded.version, rest = excluded.rest"
)
SAVE_SUM_COLUMNS = SAVE_SUMS.format(
    "SELECT * FROM unnest($1::int[], $2::text[], $3::float8[], $4::bigint[], $5::bigint[], $6::bigint[])"
)
SAVE_COLUMNS = SAVE.format("SELECT * FROM unnest($1::int[], $2::text[], $3::float8[], $4::bigint[], $5::int[])")
# SQLite releases the interpreter's lock for each call, and reacquiring it from a busy thread takes milliseconds:
# `executemany`, a call for each row, slows down from 1.5 to 500 us a row. So many rows go into one call, in few sizes,
# because preparing a statement costs more than running it.
SIZES = (2000, 200, 20, 1)
SAVE_ROWS = {size: SAVE.format("VALUES " + ", ".join(["(?, ?, ?, ?, ?)"] * size)) for size in SIZES}
SAVE_SUM_ROWS = {size: SAVE_SUMS.format("VALUES " + ", ".join(["(?, ?, ?, ?, ?, ?)"] * size)) for size in SIZES}

# Any number of values in one statement: a list of lists as JSON, of which each inner list is a row with the column
# `value`.
EACH = {"sqlite": "json_each(?)", "postgresql": "json_array_elements($1::text::json)"}
SAVE_BOARDS = (
    'INSERT INTO boards (board, "order", operator, season, hidden, version)'
    " SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, CAST(value ->> 4 AS BOOLEAN),"
    " CAST(value ->> 5 AS BIGINT) FROM {each} WHERE true"
    ' ON CONFLICT (board) DO UPDATE SET "order" = excluded."order", operator = excluded.operator,'
    " season = excluded.season, hidden = excluded.hidden, version = excluded.version"
)
SAVE_RECORDS = (
    "INSERT INTO rankings (id, board, season, players, version, erasures)"
    " SELECT CAST(value ->> 0 AS INTEGER), value ->> 1, value ->> 2, CAST(value ->> 3 AS INTEGER),"
    " CAST(value ->> 4 AS BIGINT), CAST(value ->> 5 AS INTEGER) FROM {each} WHERE true"
    " ON CONFLICT (id) DO UPDATE SET players = excluded.players, version = excluded.version,"
    " erasures = excluded.erasures"
)
FIND_RECORDS = (
    "SELECT id, board, season, players, version, erasures FROM rankings"
    " WHERE (board, season) IN (SELECT value ->> 0, value ->> 1 FROM {each})"
)
FIND_RESULTS = (
    "SELECT ranking, player, score, at FROM results WHERE ranking IN (SELECT CAST(value ->> 0 AS INTEGER) FROM {each})"
)

# {table}, {one}, {two}: our own names, never data. One statement for any number of ids, and it says which were new.
CLAIM = {
    "sqlite": "INSERT INTO {table} ({one}, {two}, applied_at)"
    " SELECT value ->> 0, value ->> 1, ? FROM json_each(?) WHERE true ON CONFLICT ({one}, {two}) {again}"
    " RETURNING {one}, {two}",
    "postgresql": "INSERT INTO {table} ({one}, {two}, applied_at)"
    " SELECT value ->> 0, value ->> 1, $1::bigint FROM json_array_elements($2::text::json)"
    " ON CONFLICT ({one}, {two}) {again} RETURNING {one}, {two}",
}


IDLE_MS = 5_000
"""A transaction is rolled back after this idle time: its process may be disconnected, and it holds the lock."""
RELOAD_SECONDS = 300.0
"""Limit of a transaction that loads all current rankings, with millions of results."""

ResultRow = tuple[int, str, float, int]
"""ranking, player, score, at."""

FIND_RESTS = (
    "SELECT ranking, player, rest FROM results WHERE rest <> 0"
    " AND (ranking, player) IN (SELECT CAST(value ->> 0 AS INTEGER), value ->> 1 FROM {each})"
)

# An id that was applied to a board before the board was deleted counts again.
REUSED = (
    "DO UPDATE SET applied_at = excluded.applied_at WHERE applied_scores.applied_at <="
    " (SELECT deleted_at FROM deleted_boards WHERE deleted_boards.board = applied_scores.board)"
)


@dataclass(frozen=True, slots=True)
class Reached:
    """Progress of the database; see tables.py."""

    version: int
    last_ranking: int
    as_of: int | None
    """Microseconds since 1970."""


@dataclass(frozen=True, slots=True)
class RankingRecord:
    """The row of one ranking, without its results."""

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
    """The leaderboard's tables. Call methods with a connection only inside `writing` or `reading`.

    All methods raise `DatabaseUnavailable`.
    """

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
        """Open the only writing transaction; it waits for others, commits at the end and rolls back on an exception."""
        async with self._database.write() as connection:
            if self._database.dialect == "postgresql":
                await connection.execute(
                    sa.text(
                        # The second one: see the migration 0007.
                        f"SELECT set_config('idle_in_transaction_session_timeout', '{IDLE_MS}', true),"
                        " set_config('bellhop.leaderboard', 'versions', true),"
                        f" pg_advisory_xact_lock({LOCK})"
                    )
                )
            yield connection

    async def check_writable(self) -> None:
        """Check that the database accepts writes.

        Raises:
            DatabaseUnavailable: it does not.
        """
        async with self.writing() as connection:
            await connection.execute(sa.update(progress).values(version=progress.c.version))

    @asynccontextmanager
    async def reading(self, limit: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a read-only transaction that sees one consistent state, for up to `limit` seconds."""
        async with self._database.read(limit) as connection:
            if self._database.dialect == "postgresql":
                await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    async def progress(self, connection: AsyncConnection) -> Reached:
        """Return the progress of the database."""
        row = (await connection.execute(sa.select(progress))).one()
        return Reached(row.version, row.last_ranking, row.as_of)

    async def save_progress(self, connection: AsyncConnection, reached: Reached) -> None:
        """Write the progress of the database after this transaction."""
        values = {"version": reached.version, "last_ranking": reached.last_ranking, "as_of": reached.as_of}
        await connection.execute(sa.update(progress).values(values))

    async def boards(self, connection: AsyncConnection, since: int = -1) -> dict[str, BoardSettings]:
        """Return the settings of all boards that were set up after version `since`."""
        chosen = sa.select(boards).where(boards.c.version > since)
        return {
            row.board: _settings(row.order, row.operator, row.season, bool(row.hidden))
            for row in await connection.execute(chosen)
        }

    async def save_boards(self, connection: AsyncConnection, named: dict[str, BoardSettings], version: int) -> None:
        """Write the settings of boards, new or not."""
        rows = [
            (board, settings.order.value, settings.operator.value, settings.season.value, settings.hidden, version)
            for board, settings in named.items()
        ]
        if rows:
            await self._with_list(connection, SAVE_BOARDS, rows)

    async def deleted_boards(self, connection: AsyncConnection, since: int) -> dict[str, int]:
        """Return the boards that were deleted after version `since`, with the time in microseconds since 1970."""
        chosen = sa.select(deleted_boards.c.board, deleted_boards.c.deleted_at)
        rows = await connection.execute(chosen.where(deleted_boards.c.version > since))
        return {row.board: row.deleted_at for row in rows}

    async def delete_board(self, connection: AsyncConnection, board: str, at: int, version: int) -> int:
        """Delete a board and its rankings; return the time of the deletion. Its results are left to `discard`.

        The time is `at`, or later if scores were applied later: the clocks of replicas may differ.
        """
        latest = await connection.scalar(sa.select(sa.func.max(applied_scores.c.applied_at)))
        values = {"deleted_at": max(at, latest or 0), "version": version}
        insert = self._database.insert(deleted_boards).values(board=board, **values)
        await connection.execute(insert.on_conflict_do_update(index_elements=["board"], set_=values))
        theirs = sa.select(rankings.c.id).where(rankings.c.board == board)
        await connection.execute(sa.insert(discarded_rankings).from_select(["ranking"], theirs))
        await connection.execute(sa.delete(rankings).where(rankings.c.board == board))
        await connection.execute(sa.delete(boards).where(boards.c.board == board))
        return values["deleted_at"]

    async def records_since(self, connection: AsyncConnection, since: int) -> list[RankingRecord]:
        """Return all rankings that changed after version `since`."""
        return await self._records(connection, rankings.c.version > since)

    async def records_in(self, connection: AsyncConnection, seasons: Iterable[str]) -> list[RankingRecord]:
        """Return all rankings of these `seasons`."""
        return await self._records(connection, rankings.c.season.in_(list(seasons)))

    async def records_of(self, connection: AsyncConnection, board: str) -> list[RankingRecord]:
        """Return all rankings of one board."""
        return await self._records(connection, rankings.c.board == board)

    async def records(self, connection: AsyncConnection, keys: list[tuple[str, str]]) -> list[RankingRecord]:
        """Return the existing rankings among `keys`, which are pairs of board and season."""
        return [RankingRecord(*row) for row in await self._with_list(connection, FIND_RECORDS, keys)] if keys else []

    async def _records(self, connection: AsyncConnection, wanted: Any) -> list[RankingRecord]:
        chosen = sa.select(
            rankings.c.id,
            rankings.c.board,
            rankings.c.season,
            rankings.c.players,
            rankings.c.version,
            rankings.c.erasures,
        )
        return [RankingRecord(*row) for row in await connection.execute(chosen.where(wanted))]

    async def save_records(self, connection: AsyncConnection, records: list[RankingRecord]) -> None:
        """Write rankings, new or not."""
        rows = [(one.id, one.board, one.season, one.players, one.version, one.erasures) for one in records]
        if rows:
            await self._with_list(connection, SAVE_RECORDS, rows)

    async def _with_list(self, connection: AsyncConnection, statement: str, rows: Sequence[tuple[Any, ...]]) -> Any:
        dialect = self._database.dialect
        return await connection.exec_driver_sql(statement.format(each=EACH[dialect]), (orjson.dumps(rows).decode(),))

    async def results_of(self, connection: AsyncConnection, ids: list[int], since: int) -> list[ResultRow]:
        """Return the results of several rankings that changed after version `since`, unordered."""
        after = "" if since < 0 else f" AND version > {since:d}"
        return list(await self._with_list(connection, FIND_RESULTS + after, [(id,) for id in ids]))

    async def results(self, connection: AsyncConnection, ranking: int, since: int = 0) -> AsyncIterator[Page]:
        """Yield pages of the results that changed after version `since`."""
        chosen = sa.select(results.c.player, results.c.score, results.c.at).where(
            results.c.ranking == ranking, results.c.version > since
        )
        rows = await connection.stream(chosen, execution_options={"yield_per": PAGE})
        async for page in rows.partitions(PAGE):
            players, scores, at = zip(*page, strict=True)
            yield Page(players, scores, at)

    async def save_results(self, connection: AsyncConnection, rows: list[Row]) -> None:
        """Write results, new or not. Rows in the order of (ranking, player) touch each page of the table once."""
        await self._save(connection, SAVE_COLUMNS, SAVE_ROWS, rows)

    async def save_sums(self, connection: AsyncConnection, rows: list[SumRow]) -> None:
        """Write totals, new or not."""
        await self._save(connection, SAVE_SUM_COLUMNS, SAVE_SUM_ROWS, rows)

    async def _save(
        self, connection: AsyncConnection, columns: str, sizes: dict[int, str], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        if not rows:
            return
        if self._database.dialect == "postgresql":
            await connection.exec_driver_sql(columns, tuple(map(list, zip(*rows, strict=True))))
            return
        begin = 0
        for size, statement in sizes.items():
            while len(rows) - begin >= size:
                values = tuple(chain.from_iterable(rows[begin : begin + size]))
                await connection.exec_driver_sql(statement, values)
                begin += size

    async def rests(self, connection: AsyncConnection, keys: list[tuple[int, str]]) -> dict[tuple[int, str], int]:
        """Return the rests that are not 0, among the totals of `keys`, which are pairs of ranking and player."""
        if not keys:
            return {}
        rows = await self._with_list(connection, FIND_RESTS, keys)
        return {(ranking, player): rest for ranking, player, rest in rows}

    async def erase(self, connection: AsyncConnection, ids: list[int], player: str) -> set[int]:
        """Delete the results of a player in several rankings; return the ids of those that had one."""
        theirs = results.c.ranking.in_(ids) & (results.c.player == player)
        deleted = await connection.execute(sa.delete(results).where(theirs).returning(results.c.ranking))
        return set(deleted.scalars())

    async def postpone(self, message: tuple[str, str], accepted_at: int, at: int) -> None:
        """Note that a message waits for another attempt; its scores were accepted at `accepted_at`. Idempotent."""
        source, id = message
        values = {"source": source, "id": id, "accepted_at": accepted_at, "postponed_at": at}
        insert = self._database.insert(postponed_messages).values(values)
        async with self.writing() as connection:
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["source", "id"], set_={"postponed_at": at})
            )

    async def oldest_postponed(self, connection: AsyncConnection) -> int | None:
        """Return the time at which the oldest scores in postponed messages were accepted; None if there are none."""
        oldest: int | None = await connection.scalar(sa.select(sa.func.min(postponed_messages.c.accepted_at)))
        return oldest

    async def end_postponed(self, connection: AsyncConnection, messages: list[tuple[str, str]]) -> None:
        """Note that messages do not wait any longer. Idempotent."""
        key = sa.tuple_(postponed_messages.c.source, postponed_messages.c.id)
        waiting = sa.select(postponed_messages.c.source, postponed_messages.c.id)
        ended = {(source, id) for source, id in await connection.execute(waiting)} & set(messages)
        if ended:
            await connection.execute(sa.delete(postponed_messages).where(key.in_(ended)))

    async def claim_messages(
        self, connection: AsyncConnection, keys: list[tuple[str, str]], at: int
    ) -> set[tuple[str, str]]:
        """Note messages as applied; return those that were not applied before."""
        return await self._claim(connection, applied_messages, ("source", "id"), keys, at)

    async def claim_scores(
        self, connection: AsyncConnection, keys: list[tuple[str, str]], at: int
    ) -> set[tuple[str, str]]:
        """Note (board, id) of scores as applied; return those that were not applied since the board was created."""
        different = list(dict.fromkeys(keys))  # PostgreSQL updates a row once in a statement
        return await self._claim(connection, applied_scores, ("board", "id"), different, at, again=REUSED)

    async def _claim(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        columns: tuple[str, str],
        keys: list[tuple[str, str]],
        at: int,
        *,
        again: str = "DO NOTHING",
    ) -> set[tuple[str, str]]:
        statement = CLAIM[self._database.dialect].format(table=table.name, one=columns[0], two=columns[1], again=again)
        rows: Any = await connection.exec_driver_sql(statement, (at, orjson.dumps(keys).decode()))
        return {(one, two) for one, two in rows}

    async def discard(self) -> int:
        """Delete the results of deleted boards, in batches; return their number."""
        discarded = 0
        while True:
            async with self._database.write() as connection:
                ranking = await connection.scalar(sa.select(discarded_rankings.c.ranking).limit(1))
                if ranking is None:
                    return discarded
                theirs = results.c.ranking == ranking
                some = sa.select(results.c.player).where(theirs).limit(PRUNE_BATCH_ROWS)
                deleted = await connection.execute(sa.delete(results).where(theirs, results.c.player.in_(some)))
                if deleted.rowcount < PRUNE_BATCH_ROWS:
                    await connection.execute(
                        sa.delete(discarded_rankings).where(discarded_rankings.c.ranking == ranking)
                    )
                discarded += deleted.rowcount

    async def prune(self, before: int) -> int:
        """Delete ids that were applied earlier than `before`, in batches; return their number."""
        async with self._database.write() as connection:
            await connection.execute(sa.delete(deleted_boards).where(deleted_boards.c.deleted_at < before))
            # Longer ago than any message waits: it was deleted from its queue.
            await connection.execute(sa.delete(postponed_messages).where(postponed_messages.c.postponed_at < before))
        forgotten = 0
        for table in (applied_messages, applied_scores):
            columns = list(table.primary_key.columns)
            key = sa.tuple_(*columns)
            old = sa.select(*columns).where(table.c.applied_at < before).limit(PRUNE_BATCH_ROWS)
            while True:
                async with self._database.write(BACKGROUND_SECONDS) as connection:
                    deleted = (await connection.execute(sa.delete(table).where(key.in_(old)))).rowcount
                forgotten += deleted
                if deleted < PRUNE_BATCH_ROWS:
                    break
        return forgotten


@lru_cache
def _settings(order: str, operator: str, season: str, hidden: bool) -> BoardSettings:
    """Return the settings with these values; boards with the same settings share one object."""
    return BoardSettings.model_validate({"order": order, "operator": operator, "season": season, "hidden": hidden})
