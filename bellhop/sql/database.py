"""One database: its connection pool, and the two ways to use it, `read` and `write`."""

import asyncio
import os
import socket
import sqlite3
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from sqlalchemy import ColumnElement, Double, Table, event, literal_column, select
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from bellhop.errors import Unavailable

LIMIT_SECONDS = 5.0
"""Default limit of a statement; a transaction may take `GRACE_SECONDS` longer."""
CHECKOUT_SECONDS = 3.0
"""Limit of the wait for a connection: a free one of the pool, or a new one."""
GRACE_SECONDS = 1.0
"""If the server has not ended a statement this long after its limit, the client closes the connection."""
BACKGROUND_SECONDS = 60.0
"""Limit of a transaction that no request waits for, such as one of the retention."""
LOCK_SECONDS = 3.0
LONGEST_STATEMENT_SECONDS = 3600.0
"""The server's limit of a statement on the connections for limits above `LIMIT_SECONDS`."""
BUSY_TIMEOUT_MS = 4_000

# A host that fails sends no RST: without these settings its connections, and the locks they hold, stay for hours
# (https://www.postgresql.org/docs/17/runtime-config-connection.html#GUC-TCP-USER-TIMEOUT).
SERVER_SETTINGS = {
    "lock_timeout": f"{LOCK_SECONDS:g}s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20s",
}
TCP_OPTIONS = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

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

# PostgreSQL's classes of errors that are not the statement's: connection, authorization, no such database, insufficient
# resources, server starting or stopping (https://www.postgresql.org/docs/17/errcodes-appendix.html); and the timeouts
# of a lock (55P03), of a statement (57014) and of an idle transaction (25P03).
UNAVAILABLE_STATES = ("08", "28", "3D", "53", "57P", "55P03", "57014", "25P03")
# Deadlock and serialization failure: the transaction was rolled back so that another could continue.
CONFLICT_STATES = ("40P01", "40001")
# SQLAlchemy's error for a statement that was prepared before a migration changed its table; a retry prepares it again.
STALE_STATEMENT = "InvalidCachedStatementError"


# Clocks of replicas differ; the database has one clock. Unix seconds.
CLOCK_SQL = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}


first_in_transaction: ContextVar[Callable[[AsyncConnection], Awaitable[None]] | None] = ContextVar(
    "first_in_transaction", default=None
)
"""Runs at the beginning of each transaction of this context, and is committed or rolled back with it."""


class DatabaseUnavailable(Unavailable):
    """The database does not answer, refuses the connection, or exceeded a time limit."""


class DatabaseConflict(DatabaseUnavailable):
    """The transaction was rolled back in favour of another; an immediate retry may succeed."""


class Database:
    """A pool of connections to `sqlite+aiosqlite:///file` or `postgresql+asyncpg://…`.

    Every operation has a time limit: with a server that hangs, or whose packets are dropped, it raises
    `DatabaseUnavailable` after a few seconds.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.url = url
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite"
        self._open: WeakSet[Any] = WeakSet()  # the driver's connections to PostgreSQL
        if parsed.get_backend_name() == "postgresql":
            self.dialect = "postgresql"
            self.engine = _postgresql_engine(parsed, self._open, LIMIT_SECONDS, pool_size=8, max_overflow=8)
            # Long statements have a pool of their own, so that they never use up the connections of requests.
            self._long_running = _postgresql_engine(
                parsed, self._open, LONGEST_STATEMENT_SECONDS, pool_size=1, max_overflow=3
            )
        else:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = self._long_running = _sqlite_engine(url)
        # SQLite has one writer at a time: a lock here is cheaper than SQLite's busy polling.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def write(self, limit: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that commits at the end, and rolls back on an exception, a cancellation, or after `limit`.

        `limit`: seconds; None means `LIMIT_SECONDS`.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        first = first_in_transaction.get()
        if self.dialect == "postgresql":
            async with self._connected(limit) as connection, connection.begin():
                if first is not None:
                    await first(connection)
                yield connection
            return
        async with self._own_turn(limit), self._connected(limit) as connection:
            # A deferred BEGIN that becomes a write fails immediately with BUSY; busy_timeout does not apply to it.
            await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
            async with connection.begin():
                if first is not None:
                    await first(connection)
                yield connection

    @asynccontextmanager
    async def read(self, limit: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Open a read-only use of the database that sees one consistent state.

        `limit`: seconds until the connection is closed; None means `LIMIT_SECONDS`.

        Raises:
            DatabaseUnavailable: the database does not answer, or not in time.
        """
        async with self._connected(limit) as connection:
            yield connection

    async def ping(self) -> None:
        """Check that the database answers.

        Raises:
            DatabaseUnavailable: it does not.
        """
        async with self.read() as connection:
            await connection.exec_driver_sql("SELECT 1")

    @asynccontextmanager
    async def _connected(self, limit: float | None) -> AsyncIterator[AsyncConnection]:
        limit = LIMIT_SECONDS if limit is None else limit
        engine = self.engine if limit <= LIMIT_SECONDS else self._long_running
        async with _unavailable_as_sentence():
            async with asyncio.timeout(CHECKOUT_SECONDS):
                connection = await engine.connect()
            cut = _cutter(connection)
            # The server ends a statement that takes too long. If it does not, the client closes the connection, which
            # ends every wait for it; cancelling a driver would begin another wait.
            watchdog = asyncio.get_running_loop().call_later(limit + GRACE_SECONDS, cut)
            try:
                yield connection
            except asyncio.CancelledError:
                cut()
                raise
            finally:
                # Shielded: a second cancellation must not leak the connection.
                await asyncio.shield(asyncio.ensure_future(_give_back(connection, watchdog)))

    @asynccontextmanager
    async def _own_turn(self, limit: float | None) -> AsyncIterator[None]:
        limit = LIMIT_SECONDS if limit is None else limit
        try:
            async with asyncio.timeout(limit):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(f"the database was busy with other transactions for {limit:g} s") from None
        try:
            yield
        finally:
            self._turn.release()

    @property
    def clock(self) -> ColumnElement[float]:
        """The database's clock in Unix seconds, as an SQL expression. In PostgreSQL it advances in a transaction."""
        return literal_column(CLOCK_SQL[self.dialect], Double)

    def insert(self, table: Table) -> Any:
        """Return the dialect's `insert` construct, which has `on_conflict_do_…` in both dialects."""
        # Imported here: the module of the other dialect would take 3 MB.
        return import_module(f"sqlalchemy.dialects.{self.dialect}").insert(table)

    async def close(self) -> None:
        """Close all connections; after `CHECKOUT_SECONDS` without waiting for the server."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECKOUT_SECONDS):
                await self.engine.dispose()
                await self._long_running.dispose()
        for connection in self._open:
            connection.terminate()


async def clock_ms(connection: AsyncConnection) -> int:
    """Return the database's clock in milliseconds since 1970."""
    clock = literal_column(CLOCK_SQL[connection.dialect.name], Double)
    seconds: float = (await connection.execute(select(clock))).scalar_one()
    return round(seconds * 1000)


@asynccontextmanager
async def _unavailable_as_sentence() -> AsyncIterator[None]:
    try:
        yield
    except PoolTimeout:
        raise DatabaseUnavailable(f"the database left no connection free for {CHECKOUT_SECONDS:g} s") from None
    except (OperationalError, OSError) as error:
        raise DatabaseUnavailable(f"the database does not answer: {first_line(error)}") from error
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", ""))
        if state in CONFLICT_STATES or type(error.orig).__name__ == STALE_STATEMENT:
            raise DatabaseConflict(f"the database rolled the transaction back: {first_line(error)}") from error
        if error.connection_invalidated:
            raise DatabaseUnavailable(f"the database closed the connection: {first_line(error)}") from error
        if state.startswith(UNAVAILABLE_STATES):
            raise DatabaseUnavailable(f"the database refuses the request: {first_line(error)}") from error
        raise


async def _give_back(connection: AsyncConnection, watchdog: asyncio.TimerHandle) -> None:
    try:
        await connection.close()
    finally:
        watchdog.cancel()


def _cutter(connection: AsyncConnection) -> Callable[[], None]:
    """Return a function that ends the current operation of `connection`; it may be called from any task."""
    assert connection.sync_connection is not None
    driver: Any = connection.sync_connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        return driver.terminate  # type: ignore[no-any-return]

    def interrupt() -> None:
        with suppress(sqlite3.ProgrammingError):  # the connection is closed already
            raw.interrupt()

    raw = driver._conn  # aiosqlite's own `interrupt` calls this one, but is a coroutine
    return interrupt


def first_line(error: Exception) -> str:
    """Return the first line of the database's error message, without the statement."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return (str(cause).splitlines() or [_no_words(cause)])[0]


def _no_words(error: BaseException | None) -> str:
    return f"nothing within {CHECKOUT_SECONDS:g} s" if isinstance(error, TimeoutError) else type(error).__name__


def _postgresql_engine(url: URL, opened: WeakSet[Any], statement_seconds: float, **pool: int) -> AsyncEngine:
    arguments: dict[str, Any] = {
        "timeout": CHECKOUT_SECONDS,
        "server_settings": SERVER_SETTINGS
        | {
            "statement_timeout": f"{statement_seconds:g}s",
            "idle_in_transaction_session_timeout": f"{max(60.0, statement_seconds):g}s",
        },
    }
    if url.query.get("ssl") in ("verify-ca", "verify-full") and not _own_root_certificate():
        # The system's certificate authorities, as in all our TLS clients; asyncpg does not load them by itself.
        arguments["ssl"] = ssl.create_default_context()
        arguments["ssl"].check_hostname = url.query["ssl"] == "verify-full"
        if certificate := os.environ.get("PGSSLCERT"):
            arguments["ssl"].load_cert_chain(certificate, os.environ.get("PGSSLKEY"))
    engine = create_async_engine(url, pool_timeout=CHECKOUT_SECONDS, connect_args=arguments, **pool)

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        opened.add(connection.driver_connection)
        endpoint = connection.driver_connection._transport.get_extra_info("socket")
        if endpoint is not None and endpoint.family != socket.AF_UNIX:
            endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in TCP_OPTIONS.items():
                if (option := getattr(socket, name, None)) is not None:  # macOS has not all of them
                    endpoint.setsockopt(socket.IPPROTO_TCP, option, value)

    @event.listens_for(engine.sync_engine, "checkout")
    def check(connection: Any, _record: Any, _proxy: Any) -> None:
        # Replaces the pool's ping without its round trip: the socket shows whether the server has closed it.
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError("the server closed the connection")

    return engine


def _own_root_certificate() -> bool:
    return "PGSSLROOTCERT" in os.environ or (Path("~").expanduser() / ".postgresql" / "root.crt").exists()


def _sqlite_engine(url: str) -> AsyncEngine:
    # Statements with many rows take half a megabyte each, prepared: sqlite3 would keep 128 of them for each connection.
    # The connection used last is the one whose pages are in its cache.
    arguments = {"timeout": BUSY_TIMEOUT_MS / 1000, "cached_statements": 16}
    engine = create_async_engine(
        url, pool_size=8, pool_use_lifo=True, pool_timeout=CHECKOUT_SECONDS, connect_args=arguments
    )

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
