"""Programs that follow a notifier, written as docs/api.md says: what they are shown when it is restarted and absent."""

import asyncio
import itertools
import json
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.asyncio.client import connect

from tests.services.notifier_support import Process, example, raise_notification, running, served, token
from tests.support import Vhost, wait_until

ABSENT_SECONDS = 10.0

Follow = Callable[..., Awaitable[None]]


def documented(path: str) -> Follow:
    """Return the client that docs/api.md shows for `path`."""
    names: dict[str, Any] = {
        "asyncio": asyncio,
        "json": json,
        "random": random.Random(1),
        "httpx": httpx,
        "connect": partial(connect, proxy=None),
        "ConnectionClosed": ConnectionClosed,
        "InvalidStatus": InvalidStatus,
        "WebSocketException": WebSocketException,
    }
    exec(example(f"{path}\n"), names)
    follow: Follow = names["follow"]
    return follow


class Publisher:
    """Raises a notification twenty times a second until it is told to stop."""

    def __init__(self, vhost: Vhost) -> None:
        self._vhost = vhost
        self._numbers = itertools.count()
        self.published: list[str] = []

    async def one(self) -> str:
        """Raise one notification and return its title."""
        title = f"number {next(self._numbers)}"
        await raise_notification(self._vhost, title)
        self.published.append(title)
        return title

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self.one()
            await asyncio.sleep(0.05)


async def terminated(notifier: Process) -> None:
    """SIGTERM, and a start right afterwards."""
    assert await notifier.terminate() == 0
    await notifier.start()


async def killed(notifier: Process) -> None:
    """SIGKILL, and a start right afterwards."""
    await notifier.kill()
    await notifier.start()


async def absent(notifier: Process) -> None:
    """Nothing listens on the port for ten seconds."""
    await notifier.kill()
    await asyncio.sleep(ABSENT_SECONDS)
    await notifier.start()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", ["/v1/ws", "/v1/poll"])
async def test_a_documented_client_is_shown_each_event_once(vhost: Vhost, tmp_path: Path, path: str) -> None:
    """Over SIGTERM, SIGKILL and ten seconds without a notifier, while events are published: in order, without a gap."""
    shown: list[str] = []
    gaps: list[None] = []
    publisher, stop = Publisher(vhost), asyncio.Event()
    async with running(vhost.amqp_url, tmp_path) as notifier:
        base = notifier.url.replace("http", "ws") if path == "/v1/ws" else notifier.url
        client = asyncio.ensure_future(
            documented(path)(
                base + path,
                token(),
                lambda event: shown.append(event["data"]["title"]),
                lambda: gaps.append(None),
            )
        )

        async def follows() -> bool:
            await publisher.one()
            return bool(shown)

        await wait_until(follows, 60, "the client follows", interval=0.1)
        before = len(publisher.published) - publisher.published[::-1].index(shown[0]) - 1
        publishing = asyncio.create_task(publisher.run(stop))
        for fault in (terminated, killed, absent):
            await fault(notifier)
            newest = publisher.published[-1]
            await wait_until(lambda newest=newest: newest in shown or client.done(), 120, f"shown after {fault}")
            assert not client.done(), client.exception()
        stop.set()
        await publishing
        await wait_until(lambda: shown[-1] == publisher.published[-1], 120, "the last event is shown")
        client.cancel()
    assert shown == publisher.published[before:]
    assert gaps == []


@pytest.mark.parametrize("path", ["/v1/ws", "/v1/poll"])
async def test_a_documented_client_ends_when_its_token_is_refused(path: str) -> None:
    """Only another token helps, so it does not try again."""
    async with served() as notifier:
        base = notifier.url.replace("http", "ws") if path == "/v1/ws" else notifier.url
        following = documented(path)(base + path, "nonsense", None, None)
        with pytest.raises((ConnectionClosed, httpx.HTTPStatusError)):
            await asyncio.wait_for(following, 10)
