"""Programs that follow a notifier, written as docs/api.md says: what they are shown when it is restarted and absent."""

import asyncio
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

from tests.services.notifier_restarts import FAULTS, Publisher
from tests.services.notifier_support import example, running, served, token
from tests.support import Vhost, wait_until

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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", ["/v1/ws", "/v1/poll"])
async def test_a_documented_client_is_shown_each_event_once(vhost: Vhost, tmp_path: Path, path: str) -> None:
    """Over SIGTERM, SIGKILL and ten seconds without a notifier, while events are published: in order, without a gap."""
    shown: list[str] = []
    gaps: list[None] = []
    publisher = Publisher(vhost)
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
        async with publisher.running():
            for fault in FAULTS:
                await fault(notifier)
                newest = publisher.published[-1]
                await wait_until(
                    lambda newest=newest: newest in shown or client.done(), 120, f"shown after {fault.__name__}"
                )
                assert not client.done(), client.exception()
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
