"""What the faults share: the rig they stand on, and the table they fill."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import pace, report
from tests.faults.system import Rig, rig_in

WRITE = "BELLHOP_RELIABILITY_PAGE"
"""The page to write the table into; `make test-faults` names it."""


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A broker that may be killed, and services that start fast."""
    with rig_in(tmp_path_factory.mktemp("rig")) as made:
        yield made


@pytest.fixture
def record(session_folder: Path, request: pytest.FixtureRequest) -> Any:
    """Keep a line of the table: `record(fault, verdict, runs=…, recovery=…)`."""
    file, line, _ = request.node.location
    return lambda *args, **more: report.record(session_folder, (file, line), *args, **more)


def pytest_report_header() -> str:
    """Say how to repeat this run."""
    return f"faults: {'a sample' if pace.SAMPLE else 'all'}, {pace.KILLS} kills a point, SEED={pace.seed()}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table down before the session's folder goes."""
    if hasattr(session.config, "workerinput") or "BELLHOP_TEST_SESSION" not in os.environ:
        return
    found = report.rows(Path(os.environ["BELLHOP_TEST_SESSION"]))
    session.config.stash[_ROWS] = found
    if found and os.environ.get(WRITE) and session.testsfailed == 0:
        report.write(Path(os.environ[WRITE]), found)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print it."""
    found = config.stash.get(_ROWS, [])
    if found:
        terminalreporter.write_sep("=", "what the faults did")
        terminalreporter.write_line(report.table(found))


_ROWS = pytest.StashKey[list[report.Row]]()
