"""`bellhop up`: everything on one machine, in the foreground, until Ctrl-C."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from bellhop import catalog
from bellhop.amqp import applying
from bellhop.amqp.topology import TopologyError
from bellhop.amqp.urls import split_urls
from bellhop.cli import secrets
from bellhop.cli.addresses import Addresses, local
from bellhop.cli.errors import CannotRun
from bellhop.cli.secrets import Secrets
from bellhop.cli.settings import UpSettings, inherited
from bellhop.local import node_log, packages, processes
from bellhop.local.node import VHOST, Node
from bellhop.local.ports import LOOPBACK, check_free
from bellhop.local.supervisor import Output, Program, Supervisor

MARK = "BELLHOP_STARTED_BY"
"""Every service has it in its environment: what an earlier run left is known by it."""


def up() -> None:
    """Run everything; return when it was stopped in order. Raises `CannotRun`."""
    settings = UpSettings.load()
    home = settings.home.absolute()
    secrets.private_folder(home)
    with _only_one(home, settings):
        if settings.amqp_url is None:
            packages.ensure_rabbitmq()
        asyncio.run(_Run(settings, home).run())


@contextmanager
def _only_one(home: Path, settings: UpSettings) -> Iterator[None]:
    with (home / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotRun(
                f"Bellhop already runs from {home} (process {lock.read().strip() or 'unknown'}): stop it there with"
                " Ctrl-C, or set BELLHOP_HOME and the ports to run a second one."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
        lock.truncate(0)


class _Run:
    """One run from start to stop."""

    def __init__(self, settings: UpSettings, home: Path) -> None:
        self._settings = settings
        self._home = home
        self._secrets = secrets.load_or_create(home)
        self._output = Output([*catalog.NAMES, "mailbox", "rabbitmq", "bellhop"])
        self._node = Node(home / "rabbitmq", settings.node_ports, self._secrets.passwords)
        self._private = settings.amqp_url is None
        self._asked = 0
        self._stop = asyncio.Event()

    def _say(self, text: str) -> None:
        self._output.line("bellhop", text)

    async def run(self) -> None:
        """Start, stay, stop."""
        loop = asyncio.get_running_loop()
        self._supervisor = Supervisor(self._output)
        self._mailbox = Supervisor(self._output)  # stopped after the services, which may still be sending
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)
        try:
            await self._until_stopped(self._start())
            await self._until_stopped(self._watch_node())
        finally:
            await self._shut_down()

    def _asked_to_stop(self) -> None:
        self._asked += 1
        self._stop.set()
        if self._asked == 1:
            return
        self._say("ending everything by force")
        self._supervisor.kill()
        self._mailbox.kill()
        self._node.kill()

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        """Do `work`, but leave off when we are asked to stop, or when a program does not come up."""
        if self._stop.is_set():
            work.close()
            return
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stop.wait())
        ends: list[asyncio.Future[Any]] = [self._supervisor.failed, self._mailbox.failed, task, stop]
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (task, stop):
            waiting.cancel()
        await asyncio.wait({task})
        for future in ends:
            if future in done:
                future.result()

    async def _start(self) -> None:
        found = await asyncio.to_thread(processes.end_leftovers, MARK, str(self._home), 20)
        if found:
            self._say(f"ended {found} processes of an earlier run that was killed")
        programs = plan(self._settings, self._home, self._secrets, self._node)
        self._check_ports()
        if self._private:
            await self._start_node()
        await self._apply_topology()
        for program in programs:
            await (self._mailbox if program.name == "mailbox" else self._supervisor).start(program)
        await asyncio.gather(*(self._ready(program) for program in programs))
        self._supervisor.all_up = self._mailbox.all_up = True
        Addresses.of(self._settings).write(self._home)
        self._say(banner(self._settings, self._home))

    def _check_ports(self) -> None:
        settings = self._settings
        wanted = [(f"{name}_port", f"the {name}") for name in catalog.NAMES]
        if settings.smtp_host is None:
            wanted += [("mailbox_smtp_port", "the mailbox's SMTP"), ("mailbox_http_port", "the mailbox's pages")]
        if self._private:
            processes.end_leftovers("RABBITMQ_MNESIA_BASE", f"{self._node.folder}/data", timeout=30)
            wanted += [(f"node_{name}_port", f"RabbitMQ's {what}") for name, what in node_log.NAMES.items()]
        for name, what in wanted:
            check_free(getattr(settings, name), what, f"BELLHOP_{name.upper()}")

    async def _start_node(self) -> None:
        self._output.line("rabbitmq", f"starting a private node in {self._node.folder} (some 10 seconds)")
        self._node.launch()
        await asyncio.to_thread(self._node.wait_ready)
        self._output.line("rabbitmq", f"answers on port {self._node.ports.amqp}")

    async def _apply_topology(self) -> None:
        given = self._settings.management_url
        if not self._private and given is None:
            self._say("BELLHOP_MANAGEMENT_URL is not set: the topology must be on your broker already")
            return
        url = given.get_secret_value() if given is not None and not self._private else self._node.management_url
        try:
            done = await applying.apply(url, self._vhost())
        except TopologyError as error:
            raise CannotRun(f"The topology could not be applied: {error}") from error
        for line in done.lines:
            self._say(f"topology: {line}")

    def _vhost(self) -> str:
        if self._settings.amqp_url is None:
            return VHOST
        url = split_urls(self._settings.amqp_url.get_secret_value())[0]
        return urlsplit(url).path.removeprefix("/").replace("%2F", "/") or "/"

    async def _ready(self, program: Program) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            said = 0.0
            while True:
                try:
                    response = await client.get(program.ready_url)
                    if response.status_code == 200:
                        return
                    reason = " ".join(response.text.split())[:300]
                except httpx.HTTPError as error:
                    reason = str(error) or type(error).__name__
                await asyncio.sleep(0.2)
                said += 0.2
                if said > 30:
                    said = 0
                    self._say(f"still waiting for the {program.name}: {reason}")

    async def _watch_node(self) -> None:
        """Stay; a private node that ends is started again."""
        while True:
            await asyncio.sleep(1)
            if self._private and self._node.has_ended:
                self._output.line("rabbitmq", f"the node ended: {self._node.last_words()}")
                self._node.kill()
                await self._start_node()

    async def _shut_down(self) -> None:
        if self._asked == 1:
            self._say("stopping (Ctrl-C again ends everything by force)")
        await self._supervisor.stop()
        await self._mailbox.stop()
        await asyncio.to_thread(self._node.stop)
        if self._asked:
            self._say("stopped")


def plan(settings: UpSettings, home: Path, made: Secrets, node: Node) -> list[Program]:
    """Return what to run, after writing each service's secrets."""
    addresses = Addresses.of(settings)
    common = inherited() | {MARK: str(home), "PYTHONUNBUFFERED": "1"}
    common |= {f"BELLHOP_{name.upper()}_URL": local(settings.port(name)) for name in catalog.NAMES}
    # Browsers use these two; services reach the gateway by the URL above, and nothing but browsers the notifier.
    common |= {"BELLHOP_NOTIFIER_URL": addresses.public_notifier, "BELLHOP_PUBLIC_URL": addresses.public}
    programs = []
    if settings.smtp_host is None:
        programs.append(_mailbox(settings, common))
        common |= {
            "BELLHOP_SMTP_HOST": LOOPBACK,
            "BELLHOP_SMTP_PORT": str(settings.mailbox_smtp_port),
            "BELLHOP_SMTP_TLS": "none",
            "BELLHOP_MAIL_FROM": os.environ.get("BELLHOP_MAIL_FROM", "hello@bellhop.example"),
            "BELLHOP_MAILBOX_URL": addresses.mailbox,
        }
    (home / "data").mkdir(mode=0o700, exist_ok=True)
    for service in catalog.SERVICES:
        name, port = service.name, settings.port(service.name)
        amqp_url, management_url = _broker_urls(settings, node, name)
        values = {"amqp_url": amqp_url}
        if service.tables:
            values["database_url"] = f"sqlite+aiosqlite:///{home}/data/{name}.db"
        values |= made.of_service(service, management_url)
        folder = secrets.write_service(home, name, values)
        own = {"BELLHOP_SECRETS_DIR": str(folder), "BELLHOP_PORT": str(port)}
        command = [sys.executable, "-m", f"services.{name}"]
        programs.append(Program(name, command, common | own, f"http://{LOOPBACK}:{port}/readyz"))
    return programs


def _broker_urls(settings: UpSettings, node: Node, user: str) -> tuple[str, str | None]:
    if settings.amqp_url is None:
        return node.amqp_url(user), node.management_url_of(user)
    management = settings.management_url
    return settings.amqp_url.get_secret_value(), management.get_secret_value() if management else None


def _mailbox(settings: UpSettings, environment: dict[str, str]) -> Program:
    return Program(
        "mailbox",
        [sys.executable, "-m", "bellhop.cli.main", "mailbox"],
        environment,
        f"http://{LOOPBACK}:{settings.mailbox_http_port}/livez",
    )


def banner(settings: UpSettings, home: Path) -> str:
    """Return what to say once everything answers."""
    key = secrets.ADMIN_KEY
    shown = home.relative_to(Path.cwd()) if home.is_relative_to(Path.cwd()) else home
    addresses = Addresses.of(settings)
    base = addresses.gateway
    rows = [
        ("gateway, console", f"{base}/   (API: {base}/docs)"),
        ("notifier", f"{addresses.notifier}/live   (API: {addresses.notifier}/docs)"),
        ("leaderboard", f"{addresses.leaderboard}/docs"),
    ]
    if addresses.public != base:
        rows.append(("links in mails", f"{addresses.public}/"))
    if addresses.public_notifier != addresses.notifier:
        rows.append(("streams", f"{addresses.public_notifier}/"))
    if settings.smtp_host is None:
        rows.append(("mailbox", f"{addresses.mailbox}/"))
    if settings.amqp_url is None:
        rows.append(("RabbitMQ", f"{addresses.management}/   (user deploy, password in {shown}/secrets/amqp/deploy)"))
    rows.append(("admin key", f"{shown}/{key}   (make admin-key prints it)"))
    lines = ["everything is up; Ctrl-C stops it", ""]
    lines += [f"    {name:<18}{text}" for name, text in rows]
    lines += [
        "",
        "  The first mail:",
        "",
        f'    curl -H "Authorization: Bearer $(cat {shown}/{key})" -H "Content-Type: application/json" \\',
        """      -d '{"to": "ada@example.com", "subject": "Hello", "text": "It works."}' \\""",
        f"      {base}/v1/mail",
        "",
    ]
    return "\n".join(lines)
