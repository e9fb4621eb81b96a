"""`bellhop up` runs everything from nothing, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bellhop.cli.settings import UpSettings
from bellhop.local import processes
from bellhop.local.up import MARK
from tests.support import wait_until
from tests.support.ports import lasting_ports

pytestmark = pytest.mark.xdist_group("up")  # most tests of this module share one system

PORTS = [name.removesuffix("_port").upper() for name in UpSettings.model_fields if name.endswith("_port")]


class Run:
    """`bellhop up` in a folder of its own, on ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.log = folder / "output"
        self.ports = dict(zip(PORTS, lasting_ports(len(PORTS)), strict=True))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}
        self.environment |= {f"BELLHOP_{name}_PORT": str(port) for name, port in self.ports.items()}
        self.environment["BELLHOP_HOME"] = str(self.home)
        self.process: subprocess.Popen[bytes] | None = None

    def command(self, *, output: int | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "bellhop.cli.main", "up"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=processes.ends_with_us(),
        )

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = self.command(output=log.fileno())
        await wait_until(self._up_or_ended, 90, "everything is up")
        assert self.process.poll() is None, self.said

    def _up_or_ended(self) -> bool:
        assert self.process is not None
        return "everything is up" in self.said or self.process.poll() is not None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self.ports[service]}"

    def client(self) -> httpx.AsyncClient:
        """Return a client of the gateway with the admin key."""
        key = (self.home / "admin-key").read_text().strip()
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(base_url=self.url("GATEWAY"), headers=headers, trust_env=False, timeout=10)

    def pids(self, mark: str = "") -> list[int]:
        """Return the processes that this run started, those with `mark` in their command line or environment."""
        home = (f"{MARK}={self.home}\0", f"RABBITMQ_MNESIA_BASE={self.home}/rabbitmq/data\0")
        ids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [
            pid
            for pid in ids
            if any(processes.is_running(pid, each) for each in home) and processes.is_running(pid, mark)
        ]

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            processes.end_leftovers(MARK, str(self.home), 0)
            processes.end_leftovers("RABBITMQ_MNESIA_BASE", f"{self.home}/rabbitmq/data", 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One run for the tests that leave it running."""
    run = Run(tmp_path_factory.mktemp("run"))
    yield run
    run.end()


@pytest.fixture
async def running(home: Run) -> Run:
    """That run, up."""
    if home.process is None:
        await home.start()
    return home


async def test_a_mail_posted_to_the_gateway_lies_in_the_mailbox(running: Run) -> None:
    """What the greeting says to try works: HTTP, ledger, broker, mailer, SMTP."""
    mail = {"to": "ada@example.com", "subject": "Up and running", "text": "It works."}
    async with running.client() as client:
        response = await client.post("/v1/mail", json=mail)
        assert response.status_code == 202, response.text

        async def arrived() -> bool:
            listed = (await client.get(f"{running.url('MAILBOX_HTTP')}/api/v1/messages")).json()["messages"]
            return any(entry["Subject"] == "Up and running" for entry in listed)

        await wait_until(arrived, 20, "the mail is in the mailbox")


async def test_a_second_one_says_that_the_first_runs(running: Run) -> None:
    """One sentence with the process to look for, exit code 1."""
    second = running.command(output=subprocess.PIPE)
    said = second.communicate(timeout=30)[0].decode()
    assert second.returncode == 1
    assert running.process is not None
    assert said.startswith("bellhop: Bellhop already runs from")
    assert f"(process {running.process.pid})" in said
    assert said.count("\n") == 1


async def test_a_service_that_is_killed_comes_back(running: Run) -> None:
    """The others stay as they are."""
    (before,) = running.pids("services.notifier\0")
    others = set(running.pids()) - {before}
    os.kill(before, signal.SIGKILL)
    await wait_until(lambda: set(running.pids("services.notifier\0")) - {before}, 20, "a new notifier runs")
    assert others <= set(running.pids())


async def test_passwords_do_not_show(running: Run) -> None:
    """Neither in what is printed nor in a command line, which everybody on the machine can read."""
    made = [file.read_text().strip() for file in running.home.rglob("secrets/amqp/*")]
    made.append((running.home / "admin-key").read_text().strip())
    lines = [running.said, *((Path("/proc") / str(pid) / "cmdline").read_text() for pid in running.pids())]
    assert [secret for secret in made for line in lines if secret in line] == []


async def test_a_killed_run_does_not_hinder_the_next(tmp_path: Path) -> None:
    """SIGKILL: what it left is ended, the same data and secrets are used again, and Ctrl-C then leaves nothing."""
    run = Run(tmp_path)
    try:
        await run.start()
        key = (run.home / "admin-key").read_text()
        assert run.process is not None
        run.process.kill()
        run.process.wait()
        await run.start()
        assert (run.home / "admin-key").read_text() == key
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0, run.said
        assert run.pids() == []
        assert "stopped" in run.said
    finally:
        run.end()


async def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    """One sentence, exit code 1."""
    run = Run(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", run.ports["NOTIFIER"]))
        listener.listen()
        process = run.command(output=subprocess.PIPE)
        said = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 1
    assert f"Port {run.ports['NOTIFIER']} for the notifier is taken by" in said
    assert "set BELLHOP_NOTIFIER_PORT" in said
    assert said.count("\n") == 1
    assert run.pids() == []
