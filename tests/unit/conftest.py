"""Tests of this folder start no server and no process: they run in seconds, anywhere."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings

# By default an example may take 200 ms, which a busy machine exceeds.
settings.register_profile("bellhop", deadline=None)
settings.load_profile("bellhop")

FOLDER = Path(__file__).parent
REFUSED = {"socket.bind", "socket.connect", "subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
_refusing = False


def _refuse(event: str, _: tuple[Any, ...]) -> None:
    if _refusing and event in REFUSED:
        raise AssertionError(f"{event}: tests/unit uses no socket and no process, move this test to tests/services")


sys.addaudithook(_refuse)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Refuse sockets and processes while a test of this folder and its fixtures run."""
    global _refusing
    _refusing = item.path.is_relative_to(FOLDER)  # this hook is called for other folders too
    try:
        return (yield)
    finally:
        _refusing = False


@pytest.fixture
def broker() -> NoReturn:
    """Say where a test that needs RabbitMQ belongs."""
    pytest.fail("tests/unit needs no server: move this test to tests/services")


@pytest.fixture
def postgresql() -> NoReturn:
    """Say where a test that needs PostgreSQL belongs."""
    pytest.fail("tests/unit needs no server: move this test to tests/services")
