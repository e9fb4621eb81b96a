"""The fixtures all tests share.

    broker          a real RabbitMQ, one for the whole session and all its workers
    vhost               a fresh virtual host with the topology applied, deleted afterwards
    bare_vhost          the same without any topology
    database_url        a fresh database with the tables of all services: once SQLite, once a real PostgreSQL
    empty_database_url  the same without any table, for tests of migrations
    smtp_server         a real SMTP server whose replies can be set

`wait_until` is imported: `from tests.support import wait_until`.
"""

import functools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx._transports import default as _default_transport

from tests.support import answers, keeper
from tests.support.addresses import isolate
from tests.support.broker import Broker, Vhost
from tests.support.databases import postgresql_database, sqlite_database
from tests.support.postgresql import find_binaries
from tests.support.smtp import SmtpServer
from tests.support.vhosts import Pool

# The process that runs pytest tells its workers through the environment where the session's servers are.
SESSION = "BELLHOP_TEST_SESSION"
OWNER = "BELLHOP_TEST_OWNER"

# Where a shell forbids it, each of the processes that tests start would compile a thousand modules.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Every HTTP client reads the system's CAs, which takes 20 ms; the tests make thousands of clients.
_default_transport.create_ssl_context = functools.cache(_default_transport.create_ssl_context)


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of this session, which workers inherit."""
    isolate()
    answers.install()
    if not hasattr(config, "workerinput"):
        os.environ[SESSION] = tempfile.mkdtemp(prefix="bellhop-tests-")
        os.environ[OWNER] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the session's servers, whoever of the workers started them."""
    if not hasattr(config, "workerinput") and SESSION in os.environ:
        folder = Path(os.environ.pop(SESSION))
        keeper.stop_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


SERVERS = {"broker", "postgresql"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the session's RabbitMQ or PostgreSQL: it is run again where these are of another version."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if SERVERS & names or "postgresql" in parameters:
            item.add_marker("servers")


@pytest.fixture(scope="session")
def session_folder() -> Path:
    """What all workers of this session share."""
    return Path(os.environ[SESSION])


@pytest.fixture(scope="session")
def broker(session_folder: Path) -> Broker:
    """A real RabbitMQ."""
    return Broker(**keeper.shared("rabbitmq", session_folder, int(os.environ[OWNER])))


@pytest.fixture(scope="session")
def vhosts(broker: Broker, session_folder: Path) -> Pool:
    """The virtual hosts that are made ahead."""
    return Pool(session_folder / "vhosts")


@pytest.fixture
async def bare_vhost(broker: Broker, vhosts: Pool) -> AsyncIterator[Vhost]:
    """A fresh virtual host with nothing in it."""
    vhost = Vhost(broker, f"test-{secrets.token_hex(6)}")
    await vhost.create()
    yield vhost
    await vhost.disconnect()
    vhosts.give_back(vhost.name)


@pytest.fixture
async def vhost(broker: Broker, vhosts: Pool) -> AsyncIterator[Vhost]:
    """A fresh virtual host with Bellhop's topology."""
    vhost = Vhost(broker, await vhosts.take())
    yield vhost
    await vhost.disconnect()
    vhosts.give_back(vhost.name)


@pytest.fixture(scope="session")
def postgresql(session_folder: Path) -> str:
    """The URL of a real PostgreSQL server, without a database."""
    from tests.support import containers

    if find_binaries() is None and not containers.wanted():
        sentence = "PostgreSQL is not installed: run 'apt-get install postgresql' as root, or start a Docker Engine"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return keeper.shared("postgresql", session_folder, int(os.environ[OWNER]))["url"]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path, session_folder: Path) -> AsyncIterator[str]:
    """A fresh database with the tables of all services."""
    async with _database(request, tmp_path, session_folder, empty=False) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_database_url(
    request: pytest.FixtureRequest, tmp_path: Path, session_folder: Path
) -> AsyncIterator[str]:
    """A fresh database without any table."""
    async with _database(request, tmp_path, session_folder, empty=True) as url:
        yield url


@asynccontextmanager
async def _database(
    request: pytest.FixtureRequest, tmp_path: Path, session_folder: Path, *, empty: bool
) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield await sqlite_database(tmp_path / "test.db", session_folder, empty=empty)
        return
    async with postgresql_database(request.getfixturevalue("postgresql"), empty=empty) as url:
        yield url


@pytest.fixture
async def smtp_server() -> AsyncIterator[SmtpServer]:
    """A real SMTP server that takes every mail, until told otherwise."""
    server = SmtpServer()
    await server.start()
    yield server
    await server.stop()
