"""What every benchmark needs: a private broker, services in processes of their own, an environment for peers."""

import itertools
import logging
import os
import platform
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import structlog

from bellhop.local import processes
from bellhop.local.node import VHOST, Node, Ports
from bellhop.local.ports import free_ports
from bellhop.web.auth import new_key


@dataclass(frozen=True)
class Stage:
    """A private broker and a folder."""

    folder: Path
    amqp_url: str
    management_url: str


@dataclass(frozen=True)
class Gateway:
    """A gateway that runs."""

    port: int
    key: str
    pid: int

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        """Return what each request needs."""
        return {"authorization": f"Bearer {self.key}", "content_type": content_type}


@contextmanager
def broker() -> Iterator[Stage]:
    """Start a private RabbitMQ with the topology, until the block ends."""
    # Our own connections need not say that they connect.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory(prefix="bellhop-bench-") as name:
        node = Node(Path(name) / "rabbitmq", Ports(*free_ports(5)), {"deploy": password})
        node.launch()
        try:
            node.wait_ready()
            yield Stage(
                Path(name),
                f"amqp://deploy:{password}@127.0.0.1:{node.ports.amqp}/{VHOST}",
                f"http://deploy:{password}@127.0.0.1:{node.ports.management}",
            )
        finally:
            node.kill()


@contextmanager
def process(*command: str, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python module that serves HTTP on `port`, until the block ends."""
    names = {f"BELLHOP_{name.upper()}": value for name, value in environment.items()}
    running = subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | names | {"BELLHOP_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        preexec_fn=processes.ends_with_us(),
    )
    try:
        wait_ready(running, f"http://127.0.0.1:{port}/readyz", " ".join(command))
        yield running
    finally:
        running.terminate()
        running.wait(30)


def wait_ready(running: "subprocess.Popen[bytes]", url: str, name: str) -> None:
    """Return when `url` answers 2xx; end with a sentence if that takes 30 seconds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} did not become ready") from None
            time.sleep(0.1)
        else:
            return


@contextmanager
def gateway(stage: Stage, **settings: str) -> Iterator[Gateway]:
    """Run the gateway on `stage`."""
    port, key = free_ports(1)[0], new_key()
    values = {
        "amqp_url": stage.amqp_url,
        "database_url": f"sqlite+aiosqlite:///{stage.folder}/gateway.db",
        "token_key": secrets.token_urlsafe(32),
        "admin_key": key,
        "log_level": "warning",
        **settings,
    }
    with process("-m", "services.gateway", port=port, **values) as running:
        yield Gateway(port, key, running.pid)


def outbox(stage: Stage) -> int:
    """Return how many messages the gateway has promised and not published yet."""
    with closing(sqlite3.connect(f"file:{stage.folder}/gateway.db?mode=ro", uri=True, timeout=10)) as database:
        count: int = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
        return count


@contextmanager
def mailer(stage: Stage, smtp_port: int, **settings: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run a mailer that sends to `smtp_port`; give its port and its process."""
    port = free_ports(1)[0]
    values = {
        "amqp_url": stage.amqp_url,
        "database_url": f"sqlite+aiosqlite:///{stage.folder}/mailer.db",
        "smtp_host": "127.0.0.1",
        "smtp_port": str(smtp_port),
        "smtp_tls": "none",
        "mail_from": "hello@bellhop.example",
        "log_level": "warning",
        **settings,
    }
    with process("-m", "services.mailer", port=port, **values) as running:
        yield port, running


def environment(folder: Path, *packages: str) -> Path:
    """Make a virtual environment with the `packages` of a peer; return the folder of its programs."""
    venv = folder / "peer"
    python = venv / "bin" / "python"
    # Where scripts/bootstrap puts uv if the machine has none.
    ours = Path(__file__).parent.parent / ".bellhop/uv/bin"
    if (uv := shutil.which("uv", path=f"{os.environ['PATH']}:{ours}")) is not None:
        make = [uv, "venv", "--quiet", "--python", sys.executable]
        install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    else:
        make = [sys.executable, "-m", "venv"]
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*make, str(venv)], check=True)
    subprocess.run([*install, *packages], check=True)
    return venv / "bin"


def memory(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def cpu(pids: Sequence[int]) -> float:
    """Return the seconds of CPU that processes and their children have used together."""
    used = 0
    children = [Path(f"/proc/{pid}/task/{pid}/children").read_text().split() for pid in pids]
    for pid in (*pids, *itertools.chain(*children)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of `values` does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def heading() -> str:
    """Say where and with what a figure was measured."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "pika", "sqlalchemy"))
    return f"{os.cpu_count()} x {cpu}; Python {platform.python_version()}; {packages}; {time.strftime('%Y-%m-%d')}"
