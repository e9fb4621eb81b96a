"""A real PostgreSQL for tests, started from the system's package."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bellhop.local import processes
from bellhop.local.ports import LOOPBACK
from tests.support.ports import lasting_ports

IMMEDIATE_SHUTDOWN = signal.SIGQUIT  # postgresql.org/docs/current/server-shutdown.html

# The data of a test need not survive the machine; without this every CREATE DATABASE waits for the disk.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "200", "shared_buffers": "64MB"}


def find_binaries() -> Path | None:
    """Return the folder of the newest installed server's programs, or None."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # where Debian puts them, not on the PATH
    for initdb in sorted(versions, key=lambda path: float(path.parts[-3]), reverse=True):
        return initdb.parent
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


@contextmanager
def private_server() -> Iterator[dict[str, Any]]:
    """Start a server on a free loopback port and say how to reach it; its data is gone afterwards."""
    binaries = find_binaries()
    if binaries is None:
        raise RuntimeError("PostgreSQL is not installed: run 'apt-get install postgresql' as root")
    folder = Path(tempfile.mkdtemp(prefix="bellhop-postgresql-"))
    account: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    password = secrets.token_urlsafe(16)
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": str(folder)}
    try:
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)  # the folder itself is private
        _initialise(binaries, folder, environment, account)
        port = lasting_ports(1)[0]
        arguments = [str(binaries / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]
        for name, value in ({"listen_addresses": LOOPBACK} | SETTINGS).items():
            arguments += ["-c", f"{name}={value}"]
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(
                arguments,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=processes.ends_with_us(IMMEDIATE_SHUTDOWN),
                **account,
            )
        try:
            _wait_ready(server, port, folder / "server.log")
            yield {"url": f"postgresql+asyncpg://bellhop:{password}@{LOOPBACK}:{port}", "pid": server.pid}
        finally:
            server.send_signal(IMMEDIATE_SHUTDOWN)
            server.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop the server with process id `pid` and all its backends, without a word to anybody; then let them go on."""
    pids = [pid]
    os.kill(pid, signal.SIGSTOP)  # first, so that it makes no further backend
    try:
        pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        yield
    finally:
        for each in pids:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGCONT)


def _initialise(binaries: Path, folder: Path, environment: dict[str, str], account: dict[str, Any]) -> None:
    command = [str(binaries / "initdb"), "-D", str(folder / "data"), "-U", "bellhop", "-E", "UTF8", "--no-sync"]
    command += ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, **account)
    if done.returncode != 0:
        raise RuntimeError(f"initdb failed: {done.stderr.strip()}")


def _wait_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while "ready to accept connections" not in log.read_text(errors="replace"):
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-500:]}")
        time.sleep(0.02)
    socket.create_connection((LOOPBACK, port), timeout=5).close()
