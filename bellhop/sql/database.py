"""One database: how it is opened, and the only two ways to use it, reading and writing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Table, event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from bellhop.errors import Unavailable

BUSY_TIMEOUT_MS = 10_000

# WAL with synchronous=FULL syncs the log at each commit; NORMAL may roll commits back after a power loss
# (https://www.sqlite.org/pragma.html#pragma_synchronous). A larger log means fewer checkpoints under load.
SQLITE_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys=ON",
    "PRAGMA wal_autocheckpoint=4000",
    "PRAGMA cache_size=-16384",
)

# PostgreSQL's classes of errors in which nothing is wrong with the statement: connection, authorization, no such
# database, resources used up, server starting or stopping (https://www.postgresql.org/docs/17/errcodes-appendix.html).
AWAY_STATES = ("08", "28", "3D", "53", "57P")


class DatabaseAway(Unavailable):
    """The database cannot be used at the moment."""


class Database:
    """A pool of connections to `sqlite+aiosqlite:///file` or `postgresql+asyncpg://…`."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.url = url
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite"
        if parsed.get_backend_name() == "postgresql":
            self.dialect = "postgresql"
            self.engine = create_async_engine(url, pool_size=8, max_overflow=8, pool_pre_ping=True)
        else:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = _sqlite_engine(url)
        # SQLite has one writer at a time: waiting for our own turn here is cheaper than SQLite's busy polling.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection inside a transaction that commits at the end, or rolls back on an exception."""
        if self.dialect == "postgresql":
            async with _away_as_sentence(), self.engine.begin() as connection:
                yield connection
            return
        async with self._turn, _away_as_sentence(), self.engine.connect() as connection:
            # A deferred BEGIN that turns into a write fails at once with BUSY, whatever busy_timeout says.
            await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
            async with connection.begin():
                yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Give a connection that sees one consistent state."""
        async with _away_as_sentence(), self.engine.connect() as connection:
            yield connection

    def insert(self, table: Table) -> Any:
        """Return the dialect's `insert`, which knows ON CONFLICT (both dialects spell it alike)."""
        return import_module(f"sqlalchemy.dialects.{self.dialect}").insert(table)  # the other one would be 3 MB

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


@asynccontextmanager
async def _away_as_sentence() -> AsyncIterator[None]:
    try:
        yield
    except (OperationalError, OSError) as error:
        raise DatabaseAway(f"the database does not answer: {_first_line(error)}") from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise DatabaseAway(f"the database closed the connection: {_first_line(error)}") from error
        if str(getattr(error.orig, "sqlstate", "")).startswith(AWAY_STATES):
            raise DatabaseAway(f"the database does not let us in: {_first_line(error)}") from error
        raise


def _first_line(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).splitlines() or [type(cause).__name__])[0]


def _sqlite_engine(url: str) -> AsyncEngine:
    # Statements with many rows take half a megabyte each, prepared: sqlite3 would keep 128 of them for each connection.
    # The connection used last is the one whose pages are in its cache.
    arguments = {"timeout": BUSY_TIMEOUT_MS / 1000, "cached_statements": 16}
    engine = create_async_engine(url, pool_size=8, pool_use_lifo=True, connect_args=arguments)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would otherwise begin transactions of its own
        cursor = connection.cursor()
        for pragma in SQLITE_PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))

    return engine
