"""One database: how it is opened, and the only two ways to use it, reading and writing."""

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
"""A statement, and nearly also a transaction, may take so long unless it was given another limit."""
CHECKOUT_SECONDS = 3.0
"""So long may pass until there is a connection: a free one of the pool, or a new one."""
GRACE_SECONDS = 1.0
"""Then the client ends what should have been ended by the server."""
BITE_SECONDS = 60.0
"""The limit of what nobody waits for, such as the retention."""
LOCK_SECONDS = 3.0
PATIENT_SECONDS = 3600.0
BUSY_TIMEOUT_MS = 4_000

# A host that vanishes sends no RST: without these its connections, and on its side our locks, stay for hours
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

# PostgreSQL's classes of errors in which nothing is wrong with the statement: connection, authorization, no such
# database, resources used up, server starting or stopping (https://www.postgresql.org/docs/17/errcodes-appendix.html).
# And those in which it waited too long: for a lock (55P03) or for its end (57014).
AWAY_STATES = ("08", "28", "3D", "53", "57P", "55P03", "57014", "25P03")
# A deadlock, or a serialization failure: the transaction was rolled back so that another could go on.
CONFLICT_STATES = ("40P01", "40001")
# SQLAlchemy's error for a statement that was prepared before a migration changed its table: prepared again, it works.
STALE_STATEMENT = "InvalidCachedStatementError"


# Clocks of replicas differ; the database has one.
CLOCK_SQL = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}


first_in_transaction: ContextVar[Callable[[AsyncConnection], Awaitable[None]] | None] = ContextVar(
    "first_in_transaction", default=None
)
"""What each transaction of this context does first: it is committed together with the rest, or not at all."""


class DatabaseUnavailable(Unavailable):
    """The database cannot be used at the moment."""


class DatabaseConflict(DatabaseUnavailable):
    """The transaction was rolled back in favour of another; the same one may succeed immediately."""


class Database:
    """A pool of connections to `sqlite+aiosqlite:///file` or `postgresql+asyncpg://…`.

    Nothing here waits without a limit: a server that is frozen, or whose packets are dropped, costs a few seconds and
    a `DatabaseUnavailable`.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.url = url
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite"
        self._open: WeakSet[Any] = WeakSet()  # the driver's connections to PostgreSQL
        if parsed.get_backend_name() == "postgresql":
            self.dialect = "postgresql"
            self.engine = _postgresql_engine(parsed, self._open, LIMIT_SECONDS, pool_size=8, max_overflow=8)
            # What may take long has connections of its own, and so never takes all of those that requests need.
            self._patient = _postgresql_engine(parsed, self._open, PATIENT_SECONDS, pool_size=1, max_overflow=3)
        else:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self.engine = self._patient = _sqlite_engine(url)
        # SQLite has one writer at a time: waiting for our own turn here is cheaper than SQLite's busy polling.
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def write(self, limit: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Give a connection inside a transaction that commits at the end, or rolls back on an exception.

        After `limit` seconds, by default `LIMIT_SECONDS`, it is rolled back.

        Raises:
            DatabaseUnavailable: nothing was written, or it is unknown whether it was.
        """
        first = first_in_transaction.get()
        if self.dialect == "postgresql":
            async with self._connected(limit) as connection, connection.begin():
                if first is not None:
                    await first(connection)
                yield connection
            return
        async with self._own_turn(limit), self._connected(limit) as connection:
            # A deferred BEGIN that turns into a write fails at once with BUSY, whatever busy_timeout says.
            await connection.execution_options(sqlite_begin="BEGIN IMMEDIATE")
            async with connection.begin():
                if first is not None:
                    await first(connection)
                yield connection

    @asynccontextmanager
    async def read(self, limit: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Give a connection that sees one consistent state, for `limit` seconds, by default `LIMIT_SECONDS`.

        Raises:
            DatabaseUnavailable: it does not answer, or not in time.
        """
        async with self._connected(limit) as connection:
            yield connection

    async def ping(self) -> None:
        """Ask the database for nothing but an answer; raise DatabaseUnavailable."""
        async with self.read() as connection:
            await connection.exec_driver_sql("SELECT 1")

    @asynccontextmanager
    async def _connected(self, limit: float | None) -> AsyncIterator[AsyncConnection]:
        limit = LIMIT_SECONDS if limit is None else limit
        engine = self.engine if limit <= LIMIT_SECONDS else self._patient
        async with _away_as_sentence():
            async with asyncio.timeout(CHECKOUT_SECONDS):
                connection = await engine.connect()
            cut = _cutter(connection)
            # The server ends a statement that takes too long. Where it does not even do that, cutting the connection
            # is what ends every wait for it; to cancel a driver would only begin another wait.
            watchdog = asyncio.get_running_loop().call_later(limit + GRACE_SECONDS, cut)
            try:
                yield connection
            except asyncio.CancelledError:
                cut()
                raise
            finally:
                # Shielded: even what is cancelled twice must not leave a connection behind.
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
        """The database's own time in Unix seconds, as an SQL expression: the same for all replicas.

        In PostgreSQL it moves on within a transaction.
        """
        return literal_column(CLOCK_SQL[self.dialect], Double)

    def insert(self, table: Table) -> Any:
        """Return the dialect's `insert`, which knows ON CONFLICT (both dialects spell it alike)."""
        return import_module(f"sqlalchemy.dialects.{self.dialect}").insert(table)  # the other one would be 3 MB

    async def close(self) -> None:
        """Close all connections; a server that does not answer to that is left after `CHECKOUT_SECONDS`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECKOUT_SECONDS):
                await self.engine.dispose()
                await self._patient.dispose()
        for connection in self._open:
            connection.terminate()


async def clock_ms(connection: AsyncConnection) -> int:
    """Return the database's own time in milliseconds since 1970: the same for all replicas."""
    clock = literal_column(CLOCK_SQL[connection.dialect.name], Double)
    seconds: float = (await connection.execute(select(clock))).scalar_one()
    return round(seconds * 1000)


@asynccontextmanager
async def _away_as_sentence() -> AsyncIterator[None]:
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
        if state.startswith(AWAY_STATES):
            raise DatabaseUnavailable(f"the database does not let us in: {first_line(error)}") from error
        raise


async def _give_back(connection: AsyncConnection, watchdog: asyncio.TimerHandle) -> None:
    try:
        await connection.close()
    finally:
        watchdog.cancel()


def _cutter(connection: AsyncConnection) -> Callable[[], None]:
    """Return what ends, from outside, whatever `connection` does."""
    assert connection.sync_connection is not None
    driver: Any = connection.sync_connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        return driver.terminate  # type: ignore[no-any-return]

    def interrupt() -> None:
        with suppress(sqlite3.ProgrammingError):  # it is closed already
            raw.interrupt()

    raw = driver._conn  # whose `interrupt` aiosqlite's own only calls, but as a coroutine
    return interrupt


def first_line(error: Exception) -> str:
    """Return what the database said, without the statement."""
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
        # Like everything else here that speaks TLS: the system's certificate authorities. asyncpg alone has none.
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
        # What the pool's own ping would find, without its round trip: the socket tells when the server closed it.
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
