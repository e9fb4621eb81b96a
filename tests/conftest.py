"""The fixtures all tests share.

    broker          a real RabbitMQ, one for the whole session and all its workers
    vhost           a fresh virtual host with the topology applied, deleted afterwards
    bare_vhost      the same without any topology
    database_url    a fresh database: once SQLite, once a real PostgreSQL
    smtp_server     a real SMTP server whose replies can be set

`wait_until` is imported: `from tests.support import wait_until`.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.support import keeper
from tests.support.broker import Broker, Vhost
from tests.support.postgresql import find_binaries
from tests.support.smtp import SmtpServer

# The process that runs pytest tells its workers through the environment where the session's servers are.
SESSION = "BELLHOP_TEST_SESSION"
OWNER = "BELLHOP_TEST_OWNER"


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of this session; workers inherit it."""
    if not hasattr(config, "workerinput"):
        os.environ[SESSION] = tempfile.mkdtemp(prefix="bellhop-tests-")
        os.environ[OWNER] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the session's servers, whoever of the workers started them."""
    if not hasattr(config, "workerinput") and SESSION in os.environ:
        folder = Path(os.environ.pop(SESSION))
        keeper.stop_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_folder() -> Path:
    """What all workers of this session share."""
    return Path(os.environ[SESSION])


@pytest.fixture(scope="session")
def broker(session_folder: Path) -> Broker:
    """A real RabbitMQ."""
    return Broker(**keeper.shared("rabbitmq", session_folder, int(os.environ[OWNER])))


@pytest.fixture
async def bare_vhost(broker: Broker) -> AsyncIterator[Vhost]:
    """A fresh virtual host with nothing in it."""
    vhost = Vhost(broker, f"test-{secrets.token_hex(6)}")
    await vhost.create()
    yield vhost
    await vhost.close()


@pytest.fixture
async def vhost(bare_vhost: Vhost) -> Vhost:
    """A fresh virtual host with Bellhop's topology."""
    await bare_vhost.apply_topology()
    return bare_vhost


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
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A fresh, empty database."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path}/test.db"
        return
    server: str = request.getfixturevalue("postgresql")
    name = f"test_{secrets.token_hex(6)}"
    administrator = await asyncpg.connect(server.replace("+asyncpg", "") + "/postgres")
    try:
        await administrator.execute(f"CREATE DATABASE {name}")
        yield f"{server}/{name}"
        await administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await administrator.close()


@pytest.fixture
async def smtp_server() -> AsyncIterator[SmtpServer]:
    """A real SMTP server that takes every mail, until told otherwise."""
    server = SmtpServer()
    await server.start()
    yield server
    await server.stop()
