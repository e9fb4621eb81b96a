"""A server that all workers of one test session share, held by one process that ends with the session.

    python -m tests.support.keeper KIND FOLDER PID

starts the server, writes what a test needs to know to FOLDER/KIND.json, and stops the server on SIGTERM or when
process PID (the one that runs pytest) is gone, even if it was killed.
"""

import asyncio
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bellhop.local import processes

ROOT = Path(__file__).parents[2]
START_TIMEOUT = 120.0

# Ours to reap: an object that is collected while its process runs would warn.
_keepers: list[subprocess.Popen[bytes]] = []


def shared(kind: str, folder: Path, watched: int) -> dict[str, Any]:
    """Return what there is to know about the session's one server of this kind; the first to ask starts it."""
    facts, failure = folder / f"{kind}.json", folder / f"{kind}.failed"
    with (folder / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not facts.exists() and not failure.exists():
            command = [sys.executable, "-m", "tests.support.keeper", kind, str(folder), str(watched)]
            keeper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
            _keepers.append(keeper)
            (folder / f"{kind}.pid").write_text(str(keeper.pid))
            deadline = time.monotonic() + START_TIMEOUT
            while not facts.exists() and not failure.exists():
                if keeper.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{kind} did not start for the tests; its keeper ended with {keeper.poll()}")
                time.sleep(0.02)
    if failure.exists():
        raise RuntimeError(failure.read_text())
    return json.loads(facts.read_text())


def stop_all(folder: Path) -> None:
    """Stop every server that was started for this session, and wait until it is gone."""
    pids = [int(file.read_text()) for file in folder.glob("*.pid")]
    for pid in pids:
        if processes.is_running(pid, str(folder)):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 30
    while any(processes.is_running(pid, str(folder)) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    for keeper in _keepers:
        keeper.wait(5)


def keep(kind: str, folder: Path, watched: int) -> None:
    """Hold one server until told to stop or `watched` is gone."""
    told = os.pipe()
    signal.signal(signal.SIGTERM, lambda *_: os.write(told[1], b"x"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's, which then tells us
    server = SERVERS[kind]
    try:
        with server(folder) as facts:
            _write(folder / f"{kind}.json", json.dumps(facts))
            heard, _, _ = select.select([told[0], os.pidfd_open(watched)], [], [])
        if told[0] not in heard:  # pytest was killed, so nobody else will tidy up
            shutil.rmtree(folder, ignore_errors=True)
    except Exception as error:
        _write(folder / f"{kind}.failed", f"{kind} cannot be started for the tests: {error}")


def _write(file: Path, text: str) -> None:
    temporary = file.with_suffix(".part")
    temporary.write_text(text)
    temporary.rename(file)


@contextmanager
def rabbitmq(folder: Path) -> Iterator[dict[str, Any]]:
    """A broker: a container where a Docker Engine answers, else a private node."""
    from tests.support import containers
    from tests.support.broker import Broker, private_node
    from tests.support.vhosts import start_pool

    with containers.rabbitmq_container() if containers.wanted() else private_node(folder / "node") as broker:
        start_pool(folder / "vhosts", Broker(**broker))
        yield broker


@contextmanager
def postgresql(folder: Path) -> Iterator[dict[str, Any]]:
    """A PostgreSQL server: a container where a Docker Engine answers, else one that is ours alone."""
    from tests.support import containers
    from tests.support.databases import make_template
    from tests.support.postgresql import private_server

    with containers.postgresql_container() if containers.wanted() else private_server() as server:
        asyncio.run(make_template(server["url"]))
        yield server


SERVERS: dict[str, Callable[[Path], AbstractContextManager[dict[str, Any]]]] = {
    "rabbitmq": rabbitmq,
    "postgresql": postgresql,
}

if __name__ == "__main__":
    keep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
