"""What every benchmark needs: a private broker, a service in a process of its own, and a table at the end."""

import os
import platform
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from bellhop.cli.node import VHOST, Node, Ports
from bellhop.cli.ports import free_ports
from bellhop.web.auth import new_key


@dataclass(frozen=True)
class Stage:
    """A private broker and a folder."""

    folder: Path
    amqp_url: str
    management_url: str


@contextmanager
def broker() -> Iterator[Stage]:
    """Start a private RabbitMQ with the topology, until the block ends."""
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
        [sys.executable, *command], env=os.environ | names | {"BELLHOP_PORT": str(port)}, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if running.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{' '.join(command)} did not become ready") from None
                time.sleep(0.1)
        yield running
    finally:
        running.terminate()
        running.wait(20)


@contextmanager
def gateway(stage: Stage, **settings: str) -> Iterator[tuple[int, str]]:
    """Run the gateway on `stage`; give its port and its admin key."""
    port, key = free_ports(1)[0], new_key()
    values = {
        "amqp_url": stage.amqp_url,
        "database_url": f"sqlite+aiosqlite:///{stage.folder}/gateway.db",
        "token_key": secrets.token_urlsafe(32),
        "admin_key": key,
        "log_level": "warning",
        **settings,
    }
    with process("-m", "services.gateway", port=port, **values):
        yield port, key


def heading() -> str:
    """Say where and with what a figure was measured."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "pika", "sqlalchemy"))
    return f"{os.cpu_count()} x {cpu}; Python {platform.python_version()}; {packages}; {time.strftime('%Y-%m-%d')}"
