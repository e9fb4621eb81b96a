"""The steps of CONTRIBUTING.md are followed to the letter, in a copy of the checkout, and what they make works."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from bellhop.local.ports import LOOPBACK
from tests.support import Vhost, wait_until
from tests.support.ports import lasting_ports

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^ *```(sh|diff)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def steps(title: str) -> list[tuple[str, str]]:
    """Return the code blocks of one section: their language and their text."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, title
    return [(language, textwrap.dedent(block)) for language, block in BLOCK.findall(section[1])]


class Checkout:
    """A copy of the checkout in which steps are followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(lambda name: (ROOT / name).is_file(), listed.splitlines()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}

    def follow(self, title: str) -> int:
        """Apply the code blocks of a section; return how many lines they add to files that are there already."""
        before = {path: path.read_text() for path in self.folder.rglob("*.py")}
        for language, text in steps(title):
            if language == "sh":
                subprocess.run(["sh", "-euc", text], cwd=self.folder, check=True)
            else:
                self._patch(text)
        return sum(len(set(path.read_text().splitlines()) - set(old.splitlines())) for path, old in before.items())

    def _patch(self, text: str) -> None:
        """Apply a diff without line numbers: what it takes out, or stands beside, must be there exactly once."""
        for name, hunks in re.findall(r"^--- a/(.+)\n\+\+\+ b/\1\n(.*?)(?=^--- |\Z)", text, re.MULTILINE | re.DOTALL):
            file = self.folder / name
            for hunk in filter(None, hunks.split("@@\n")):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] != "+")
                new = "".join(line[1:] for line in lines if line[0] != "-")
                assert file.read_text().count(old) == 1, (name, old)
                file.write_text(file.read_text().replace(old, new))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments], cwd=self.folder, env=self._environment | environment,
            capture_output=True, text=True,
        )  # fmt: skip

    def start(self, module: str, log: Path, **environment: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module], cwd=self.folder, env=self._environment | environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip


class Provider:
    """Takes text messages by HTTP; it answers as it is told to."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.status = 202
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                provider.got.append(json.loads(body))
                provider.keys.append(self.headers["Idempotency-Key"])
                self.send_response(provider.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/messages"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


class Running:
    """The service of the example, made by following the steps, and what it did."""

    def __init__(self, vhost: Vhost, checkout: Checkout, log: Path) -> None:
        self.vhost = vhost
        self.checkout = checkout
        self.log = log

    async def publish(self, queue: str, type_: str, document: dict[str, Any], id_: str = "event-1") -> None:
        message = Message(json.dumps(document).encode(), Envelope(type=type_, source="/tests", id=id_))
        await self.vhost.publish("work", queue, message.body, headers=to_headers(message))

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
async def running(vhost: Vhost, provider: Provider, tmp_path: Path) -> AsyncIterator[Running]:
    checkout = Checkout(tmp_path / "checkout")
    assert checkout.follow("Add a service") <= 3, "the steps change more than three lines elsewhere"
    assert checkout.follow("Add a handler") > 0
    applied = checkout.run(
        "bellhop.cli.main", "topology", "apply", "--vhost", vhost.name,
        BELLHOP_MANAGEMENT_URL=vhost.broker.management_url,
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr
    (port,) = lasting_ports(1)
    log = tmp_path / "log"
    process = checkout.start(
        "services.sms", log,
        BELLHOP_AMQP_URL=vhost.amqp_url, BELLHOP_PORT=str(port), BELLHOP_SMS_PROVIDER_URL=provider.url,
    )  # fmt: skip

    async def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                return (await http.get(f"http://{LOOPBACK}:{port}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    try:
        await wait_until(ready, 60, "the service is ready")
        yield Running(vhost, checkout, log)
    finally:
        process.terminate()
        process.wait(30)


MESSAGE = {"to": "+4915112345678", "text": "Your parcel is here."}


async def test_the_service_and_the_handler_that_the_steps_make_work(running: Running, provider: Provider) -> None:
    """Requests reach the provider under an id of their own; what it refuses, and what is none, is a dead letter."""
    await running.publish("sms.requests", "sms.requested", MESSAGE)
    await running.publish("sms.requests", "sms.requested", MESSAGE)
    await wait_until(lambda: len(provider.got) == 2, 20, "the provider has both copies")
    assert provider.got[0] == MESSAGE
    assert provider.keys[0] == provider.keys[1], "the provider cannot tell that it is the same message"

    await running.publish("sms.requests", "sms.requested", {"to": "ada", "text": "Hello"}, "event-2")
    letter = await wait_until(lambda: running.vhost.get("dead-letters"), 20, "a dead letter")
    assert "not an SMS request" in str(letter.headers)

    provider.status = 400
    await running.publish("sms.requests", "sms.requested", MESSAGE, "event-3")
    letter = await wait_until(lambda: running.vhost.get("dead-letters"), 20, "another dead letter")
    assert "it answered 400" in str(letter.headers)

    await running.publish("sms.receipts", "sms.delivered", {"to": MESSAGE["to"]}, "event-4")
    await wait_until(lambda: "delivered" in running.said, 20, "the receipt is logged")

    # What CONTRIBUTING.md says of containers: one test names every file that is left.
    checked = running.checkout.run("pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_catalog.py")
    for name in ("compose_runs_it[sms]", "the_image_knows_every_port", "prometheus_reads_it[sms]"):
        assert f"test_{name}" in checked.stdout


def test_the_example_is_small() -> None:
    """Ten files at most: more would be a sign that bellhop leaves too much to its services."""
    files = [path for path in (ROOT / "examples/sms").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert 0 < len(files) <= 10
