"""The whole system as real processes, each of which can be killed, stopped, frozen and started again.

Rig      once a session: a private broker, which the tests may kill, and the process that services are forked from
System   one virtual host with the four services, their databases and an SMTP server; several may run side by side
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from aiosmtpd.smtp import Envelope, Session

from bellhop import catalog
from bellhop.amqp import topology
from bellhop.local import processes
from bellhop.local.node import Node, Ports
from bellhop.web.auth import new_key
from tests.support import Broker, SmtpServer, Vhost, wait_until
from tests.support.addresses import service_environment
from tests.support.ports import lasting_ports
from tests.support.smtp import Mail

ROOT = Path(__file__).parents[2]
RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
START_SECONDS = 60.0


class Zygote:
    """The other end of `zygote.py`. Plain sockets and a thread, because it outlives the event loop of a test."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.zygote", str(theirs.fileno())],
                cwd=ROOT,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=processes.ends_with_us(),
            )
        self._orders = ours
        self._turn = threading.Lock()
        self._started: list[int] = []
        self._news = threading.Condition()
        self.ended: dict[int, int] = {}
        self._ready: bool | None = None
        threading.Thread(target=self._listen, daemon=True).start()
        with self._news:
            self._news.wait_for(lambda: self._ready is not None, 60)
        if not self._ready:
            self._process.kill()
            self._process.wait(10)
            ours.close()
            raise RuntimeError("the services could not be imported; the traceback is above")

    def launch(self, service: str, environment: dict[str, str], log: Path, changes: tuple[str, ...]) -> int:
        order = {"service": service, "environment": environment, "log": str(log), "changes": changes}
        with self._turn:
            self._orders.sendall(json.dumps(order).encode() + b"\n")
            with self._news:
                assert self._news.wait_for(lambda: bool(self._started), 10), "the zygote does not answer"
                return self._started.pop()

    def wait(self, pid: int, timeout: float) -> int | None:
        """Return the exit status of a process, or None if it still runs after `timeout` seconds."""
        with self._news:
            self._news.wait_for(lambda: pid in self.ended, timeout)
        return self.ended.get(pid)

    def close(self) -> None:
        self._orders.shutdown(socket.SHUT_RDWR)
        self._process.wait(10)
        self._orders.close()

    def _listen(self) -> None:
        with self._orders.makefile("rb") as lines:
            for line in lines:
                news = json.loads(line)
                with self._news:
                    self._ready = True
                    if "started" in news:
                        self._started.append(news["started"])
                    elif "ended" in news:
                        self.ended[news["ended"]] = news["status"]
                    self._news.notify_all()
        with self._news:
            self._ready = False
            self._news.notify_all()


class Rig:
    """What all faults of a session stand on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        users = ("deploy", *topology.RIGHTS)
        self.passwords = {user: secrets.token_urlsafe(16) for user in users}
        self.node = Node(folder / "node", Ports(*lasting_ports(5)), self.passwords)
        self.zygote = Zygote()

    @property
    def broker(self) -> Broker:
        ports = self.node.ports
        return Broker("127.0.0.1", ports.amqp, ports.management, "deploy", self.passwords["deploy"])

    def start(self) -> None:
        self.node.launch()
        self.node.wait_ready()

    def close(self) -> None:
        self.zygote.close()
        self.node.kill()

    # What can be done to the broker.

    def kill_broker(self) -> None:
        """kill -9."""
        self.node.kill()

    async def start_broker(self) -> None:
        """Start it again with the same data; returns when it answers."""
        self.node.launch()
        await asyncio.to_thread(self.node.wait_ready)

    @property
    def broker_pid(self) -> int:
        assert self.node._server is not None
        return self.node._server.pid

    async def rabbitmqctl(self, *arguments: str) -> None:
        """Run an operator's command."""
        command = await asyncio.create_subprocess_exec(
            RABBITMQCTL,
            *arguments,
            env=self.node._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        said, _ = await command.communicate()
        assert command.returncode == 0, said.decode()


@contextmanager
def rig_in(folder: Path) -> Iterator[Rig]:
    rig = Rig(folder)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()


class Sink(SmtpServer):
    """Takes a mail when its final dot has come, and answers after that: so it also has what nobody waited for."""

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:  # noqa: N802
        reply = self.data_replies.pop(0) if self.data_replies else "250 2.0.0 OK"
        if reply.startswith("2"):
            content = envelope.original_content or b""
            self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), content, server.number))
        if self.delay:
            await asyncio.sleep(self.delay)
        await self.hold.wait()
        return reply


class Controller:
    """Decides what becomes of a process that stands at a fault point: it goes on, until somebody waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hits = 0
        self._wanted: asyncio.Future[int] | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def next_hit(self) -> "asyncio.Future[int]":
        """Hold the next process that comes to the point; its process id is the result."""
        self._wanted = asyncio.get_running_loop().create_future()
        return self._wanted

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.hits += 1
                if self._wanted is not None and not self._wanted.done():
                    self._wanted.set_result(int(line))
                    continue
                writer.write(b"g")
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            writer.close()


@dataclass
class Service:
    """One service of a system."""

    name: str
    system: "System"
    port: int
    settings: dict[str, str]
    changes: tuple[str, ...] = ()
    fault: str | None = None
    pid: int = 0
    starts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.system.folder / f"{self.name}.log"

    @property
    def running(self) -> bool:
        return bool(self.pid) and self.pid not in self.system.rig.zygote.ended

    def start(self) -> None:
        self.starts += 1
        environment = service_environment()
        environment |= {f"BELLHOP_{name.upper()}": value for name, value in self.settings.items()}
        environment["BELLHOP_INSTANCE"] = f"{self.name}-{self.starts}"
        if self.fault is not None:
            environment["BELLHOP_FAULT"] = self.fault
            environment["BELLHOP_FAULT_SOCKET"] = str(self.system.controller.path)
        self.pid = self.system.rig.zygote.launch(self.name, environment, self.log, self.changes)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self.system.rig.zygote.wait(self.pid, 10) is not None

    async def terminate(self, timeout: float = 25.0) -> int:
        """SIGTERM; return the exit status."""
        os.kill(self.pid, signal.SIGTERM)
        status = await asyncio.to_thread(self.system.rig.zygote.wait, self.pid, timeout)
        if status is None:
            os.kill(self.pid, signal.SIGUSR2)
            await asyncio.sleep(1)
            raise AssertionError(f"{self.name} did not end within {timeout} s:\n{self.log.read_text()[-6000:]}")
        return status

    async def ready(self, timeout: float = START_SECONDS) -> float:
        """Wait until it says that it is ready; return how many seconds that took."""
        began = time.monotonic()
        await wait_until(self.is_ready, timeout, f"{self.name} is ready (see {self.log})", interval=0.05)
        return time.monotonic() - began

    async def is_ready(self) -> bool:
        assert self.running, f"{self.name} has ended; see {self.log}"
        try:
            return (await self.system.http.get(f"{self.url}/readyz", timeout=3)).status_code == 200
        except httpx.TransportError:
            return False


@dataclass
class System:
    """All of Bellhop on one virtual host."""

    rig: Rig
    folder: Path
    vhost: Vhost
    smtp: Sink
    controller: Controller
    http: httpx.AsyncClient
    services: dict[str, Service] = field(default_factory=dict)
    admin_key: str = field(default_factory=new_key)
    token_key: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def database(self, name: str) -> Path:
        return self.folder / f"{name}.db"

    async def restart(self, name: str) -> None:
        """kill -9 and start again at once, as a supervisor does; does not wait until it is ready."""
        self[name].kill()
        self[name].start()

    async def all_ready(self, timeout: float = START_SECONDS) -> None:
        await asyncio.gather(*(service.ready(timeout) for service in self.services.values()))

    def logs(self) -> str:
        return "\n".join(file.read_text(errors="replace") for file in self.folder.glob("*.log"))


@asynccontextmanager
async def system(
    rig: Rig,
    folder: Path,
    *,
    services: tuple[str, ...] = catalog.NAMES,
    changes: tuple[str, ...] = ("hurry",),
    amqp_host: str = "127.0.0.1",
    amqp_port: int | None = None,
    smtp_port: int | None = None,
    start: bool = True,
    settings: dict[str, dict[str, Any]] | None = None,
) -> AsyncIterator[System]:
    """Run a system until the block ends. `amqp_…`, `smtp_port`: where a proxy listens."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test's own folder
    vhost = Vhost(rig.broker, f"fault-{secrets.token_hex(5)}")
    await vhost.create()
    await vhost.apply_topology()
    for user, rights in topology.RIGHTS.items():
        await allow(vhost, user, rights)
    smtp = Sink()
    await smtp.start(*lasting_ports(1))
    controller = Controller(folder / "fault.sock")
    await controller.start()
    async with httpx.AsyncClient(
        trust_env=False, timeout=30, limits=httpx.Limits(max_connections=200, max_keepalive_connections=200)
    ) as http:
        whole = System(rig, folder, vhost, smtp, controller, http)
        ports = dict(zip(services, lasting_ports(len(services)), strict=True))
        for name in services:
            values: dict[str, Any] = {
                "amqp_url": f"amqp://{name}:{rig.passwords[name]}@{amqp_host}:"
                f"{amqp_port or rig.node.ports.amqp}/{vhost.name}",
                "database_url": f"sqlite+aiosqlite:///{whole.database(name)}",
                "token_key": whole.token_key,
                "port": ports[name],
                "log_level": "info",
                "shutdown_seconds": 10,
                **_OWN[name](whole, ports, smtp_port),
                **(settings or {}).get(name, {}),
            }
            service = Service(name, whole, ports[name], {key: str(value) for key, value in values.items()}, changes)
            whole.services[name] = service
            if start:
                service.start()
        try:
            if start:
                await whole.all_ready()
            yield whole
        finally:
            for service in whole.services.values():
                if service.running:
                    service.kill()
            await controller.stop()
            await smtp.stop()
            with contextlib.suppress(httpx.TransportError):
                await vhost.close()


async def allow(vhost: Vhost, user: str, rights: topology.Rights) -> None:
    """Give a service's user its rights in a virtual host."""
    await vhost._put(
        f"/api/permissions/{vhost.name}/{user}",
        {"configure": rights.configure, "write": rights.write, "read": rights.read},
    )


_OWN = {
    "gateway": lambda whole, ports, _: {
        "admin_key": whole.admin_key,
        "leaderboard_url": f"http://127.0.0.1:{ports.get('leaderboard', 1)}",
        "notifier_url": f"http://127.0.0.1:{ports.get('notifier', 1)}",
    },
    "mailer": lambda whole, _, smtp_port: {
        "smtp_host": "127.0.0.1",
        "smtp_port": smtp_port or whole.smtp.port,
        "smtp_tls": "none",
        "mail_from": "hello@bellhop.example",
    },
    "notifier": lambda *_: {},
    "leaderboard": lambda *_: {"pull_seconds": 0.2, "refresh_seconds": 0.5},
}
