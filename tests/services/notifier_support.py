"""A running notifier, and a browser's side of a stream."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from bellhop.amqp.message import Delivery, Message, to_headers
from bellhop.background import Background
from bellhop.contracts.envelope import Envelope
from bellhop.web import tokens
from bellhop.web.protocol import LimitedProtocol
from services.notifier.app import build
from services.notifier.events import Event, read_event
from services.notifier.hub import Hub
from services.notifier.settings import NotifierSettings
from tests.support import Vhost, wait_until
from tests.support.pages import blocks
from tests.support.ports import lasting_ports

KEY = "a key that only the tests know: 0123456789"
NEWS = "news"


def token(*channels: str, subject: str = "ann", expires_in: int = 3600, audience: str = "stream") -> str:
    return tokens.mint(KEY, subject, expires_in, audience, channels=channels or [NEWS])


def notification(offset: int, *channels: str, title: str = "", body: str | None = None, id: str | None = None) -> Event:
    """What the notifier makes of a notification at `offset`."""
    document = {"channels": channels or [NEWS], "title": title or f"number {offset}", "body": body}
    envelope = Envelope(type="notification.raised", source="/tests", id=id or f"event-{offset}")
    delivery = Delivery(json.dumps(document).encode(), envelope, 1, {}, "notifier.log", "", "", False, offset)
    return read_event(delivery, {})


def example(mark: str) -> str:
    """Return the block of docs/api.md that contains `mark`."""
    found = [block.text for block in blocks("docs/api.md") if mark in block.text]
    assert len(found) == 1, f"docs/api.md has {len(found)} examples with {mark!r}"
    return found[0]


async def raise_notification(vhost: Vhost, title: str, id: str | None = None) -> None:
    """Publish a notification as a gateway does."""
    body = json.dumps({"channels": [NEWS], "title": title}).encode()
    envelope = Envelope(type="notification.raised", source="/tests", id=id or f"event {title}")
    await vhost.publish("notifications", "notification.raised", body, headers=to_headers(Message(body, envelope)))


@dataclass
class Served:
    """A notifier in this process, fed by the test instead of RabbitMQ."""

    url: str
    hub: Hub

    @property
    def websocket_url(self) -> str:
        return self.url.replace("http://", "ws://") + "/v1/ws"

    async def publish(self, *events: Event) -> None:
        """Publish, and return when everything went out."""
        for event in events:
            self.hub.publish(event)
        async with asyncio.timeout(5):
            while self.hub.log.end < events[-1].offset:  # noqa: ASYNC110 - a turn of the loop or two
                await asyncio.sleep(0)


@asynccontextmanager
async def served(*, port: int = 0, **settings: Any) -> AsyncIterator[Served]:
    app = build(NotifierSettings(amqp_url="amqp://nobody/", token_key=KEY, **settings))
    hub: Hub = app.state.live.hub
    hub.expect(-1)
    hub.look()
    config = uvicorn.Config(
        app,
        port=port,
        http=LimitedProtocol,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
    )
    server = uvicorn.Server(config)
    background = Background()
    background.every("pinging", 1.0, hub.tick)
    serving = asyncio.create_task(server.serve())
    try:
        await wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", hub)
    finally:
        hub.drain("the test is over")
        server.should_exit = True
        await serving
        await background.stop()


class Process:
    """A notifier in a process of its own, on a real RabbitMQ; it may be ended and started again on its port."""

    def __init__(self, amqp_url: str, folder: Path, **settings: str) -> None:
        self.port = lasting_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"notifier-{self.port}.log"
        self._environment = {
            **os.environ,
            "BELLHOP_AMQP_URL": amqp_url,
            "BELLHOP_TOKEN_KEY": KEY,
            "BELLHOP_PORT": str(self.port),
            **{f"BELLHOP_{name.upper()}": value for name, value in settings.items()},
        }

    async def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "services.notifier", env=self._environment, stdout=output, stderr=output
            )

    async def ready(self) -> None:
        await wait_until(lambda: _ready(self.url, self.process, self.log), 60, "the notifier is ready")

    async def terminate(self) -> int:
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), 30)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()


@asynccontextmanager
async def running(amqp_url: str, folder: Path, *, wait_ready: bool = True, **settings: str) -> AsyncIterator[Process]:
    notifier = Process(amqp_url, folder, **settings)
    await notifier.start()
    try:
        if wait_ready:
            await notifier.ready()
        yield notifier
    finally:
        await notifier.kill()


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> bool:
    assert process.returncode is None, f"it ended; {log} says why"
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"{url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False


class Browser:
    """Reads a stream as EventSource does."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.last_event_id: str | None = None
        self.retry: int | None = None
        self._lines = response.aiter_lines()

    async def next(self, timeout: float = 5.0) -> dict[str, Any] | None:
        """Return the data of the next event, which must also be what its `event:` line says; None at the end."""
        async with asyncio.timeout(timeout):
            type, data = "message", ""
            async for line in self._lines:
                name, _, value = line.partition(": ")
                if name == "id":
                    self.last_event_id = value
                elif name == "retry":
                    self.retry = int(value)
                elif name == "event":
                    type = value
                elif name == "data":
                    data = value
                elif not line and data:
                    document: dict[str, Any] = json.loads(data)
                    assert document["type"] == type
                    return document
        return None

    async def read(self, count: int) -> list[dict[str, Any]]:
        documents = [await self.next() for _ in range(count)]
        assert None not in documents, "the stream ended"
        return documents  # type: ignore[return-value]


@asynccontextmanager
async def browser(
    url: str, token: str, last_event_id: str | None = None, headers: dict[str, str] | None = None, **query: str
) -> AsyncIterator[Browser]:
    headers = {"Authorization": f"Bearer {token}", **(headers or {})}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    async with (
        httpx.AsyncClient(trust_env=False, timeout=10) as client,
        client.stream("GET", f"{url}/v1/stream", params=query, headers=headers) as response,
    ):
        if response.status_code != 200:
            await response.aread()
        yield Browser(response)
