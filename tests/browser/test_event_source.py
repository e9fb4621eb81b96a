"""A plain `new EventSource(url)` in Chromium: it comes back by itself, whatever happens to the notifier."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from bellhop.web.tokens import LEEWAY_SECONDS
from tests.browser.chromium import Page
from tests.faults.proxy import proxy_to
from tests.services.notifier_restarts import FAULTS, Publisher
from tests.services.notifier_support import browser, example, notification, running, served, token
from tests.support import Vhost, wait_until

pytestmark = pytest.mark.timeout(600)

CONNECTING, OPEN = 0, 1
NOBODY = 1
"""A port at which nothing listens."""
SCRIPT = """
    window.seen = []; window.gaps = []; window.busy = []; window.states = []; window.ready = false;
    window.stream = new EventSource(%s);
    const on = (type, act) => stream.addEventListener(type, (event) => act(JSON.parse(event.data)));
    on("ready", () => { ready = true; });
    on("notification.raised", (event) => seen.push(event.data.title));
    on("gap", (message) => gaps.push(message.data));
    on("busy", (message) => busy.push(message.data.status));
    stream.onerror = () => states.push(stream.readyState);
"""


class Site:
    """Somebody's site: an empty page, and where its pages get tokens, each for two seconds of a stream."""

    def __init__(self) -> None:
        self.url = ""
        self.stream_url = ""
        self.tokens = 0
        """How many were asked for."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):  # a connection that the browser does not use
            head = await reader.readuntil(b"\r\n\r\n")
            kind, body = "text/html", "<!doctype html><link rel=icon href=data:,>"
            if head.startswith(b"GET /my-stream-token "):
                self.tokens += 1
                kind = "application/json"
                body = json.dumps({"url": self.stream_url, "token": token(expires_in=2 - LEEWAY_SECONDS)})
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{body}".encode())
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    server = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


class Follower:
    """The page, as the test looks into it."""

    def __init__(self, page: Page) -> None:
        self._page = page

    async def open(self, site: str, url: str) -> None:
        """Let a page of `site` follow the notifier at `url`, and wait until it does."""
        await self._page.open(site)
        await self._page.evaluate(SCRIPT % json.dumps(f"{url}/v1/stream?{urlencode({'token': token()})}"))
        await wait_until(lambda: self._page.evaluate("ready"), 60, "the page follows", interval=0.1)

    async def titles(self) -> list[str]:
        found: list[str] = await self._page.evaluate("seen")
        return found

    async def shown(self, title: str) -> None:
        """Wait until the page was shown the event with that title."""

        async def there() -> bool:
            return title in await self.titles()

        await wait_until(there, 120, f"{title!r} is shown", interval=0.1)

    async def refused(self, status: int) -> None:
        """Wait until the page was told to come back, for the reason that has this status elsewhere."""

        async def there() -> bool:
            return status in await self._page.evaluate("busy")

        await wait_until(there, 60, f"it is busy: {status}", interval=0.1)

    async def check(self, expected: list[str]) -> None:
        """Each event was shown once and in order, no gap was told, and the browser never gave up."""
        assert await self.titles() == expected
        assert await self._page.evaluate("gaps") == []
        states = await self._page.evaluate("states")
        assert states, "the stream was never interrupted"
        assert set(states) == {CONNECTING}
        assert await self._page.evaluate("stream.readyState") == OPEN


async def test_it_survives_restarts_and_absence(site: Site, scripted: Page, vhost: Vhost, tmp_path: Path) -> None:
    """SIGTERM, SIGKILL, and ten seconds in which connections are refused, while events are published."""
    page, publisher = Follower(scripted), Publisher(vhost)
    async with running(vhost.amqp_url, tmp_path, live_origins=site.url) as notifier:
        await page.open(site.url, notifier.url)
        await page.shown(await publisher.one())
        async with publisher.running():
            for fault in FAULTS:
                await fault(notifier)
                await page.shown(await publisher.one())
        await page.shown(publisher.published[-1])
        await page.check(publisher.published)


async def test_it_goes_on_at_another_replica(site: Site, scripted: Page, vhost: Vhost, tmp_path: Path) -> None:
    """Of two replicas behind one address each ends once, by SIGTERM and by SIGKILL."""
    page, publisher = Follower(scripted), Publisher(vhost)
    async with (
        running(vhost.amqp_url, tmp_path, live_origins=site.url) as one,
        running(vhost.amqp_url, tmp_path, live_origins=site.url) as two,
        proxy_to(one.port) as proxy,
    ):
        await page.open(site.url, f"http://127.0.0.1:{proxy.port}")
        await page.shown(await publisher.one())
        async with publisher.running():
            proxy.target = two.port
            assert await one.terminate() == 0
            await page.shown(await publisher.one())
            await one.start()
            await one.ready()
            proxy.target = one.port
            await two.kill()
            await page.shown(await publisher.one())
        await page.shown(publisher.published[-1])
        await page.check(publisher.published)


async def test_it_waits_while_it_is_refused(site: Site, scripted: Page) -> None:
    """By a process that is stopping, by nobody, and by one without a free place."""
    page = Follower(scripted)
    events = [notification(offset) for offset in range(4)]
    async with served(live_origins=[site.url]) as stopping, proxy_to(_port(stopping.url)) as proxy:
        await page.open(site.url, f"http://127.0.0.1:{proxy.port}")
        await stopping.publish(events[0])
        await page.shown("number 0")
        stopping.hub.drain("It stops.")
        await page.refused(503)
        async with served(live_origins=[site.url], max_subscribers_per_subject=1) as full:
            proxy.target = NOBODY
            await full.publish(*events[:3])
            async with browser(full.url, token()) as other:
                await other.next()
                proxy.target = _port(full.url)
                await page.refused(429)
            await page.shown("number 2")
            await full.publish(events[3])
            await page.shown("number 3")
            await page.check([f"number {offset}" for offset in range(4)])


async def test_the_documented_page_gets_another_token(site: Site, scripted: Page) -> None:
    """The script of docs/api.md goes on with the next token where the last one ended; each event is shown once."""
    async with served(live_origins=[site.url]) as notifier:
        site.stream_url = f"{notifier.url}/v1/stream"
        await scripted.open(site.url)
        await scripted.evaluate("window.seen = []; window.gaps = 0;")
        await scripted.evaluate("function show(event) { seen.push(event.data.title); }")
        await scripted.evaluate("function fetchTheStateAgain() { gaps += 1; }")
        await scripted.evaluate(example("new EventSource("))
        await wait_until(lambda: notifier.hub._channels, 60, "the page follows")
        published = 0
        while site.tokens < 4:
            await notifier.publish(notification(published))
            published += 1
            await asyncio.sleep(0.2)

        async def all_shown() -> bool:
            return len(await scripted.evaluate("seen")) >= published

        await wait_until(all_shown, 60, "all events are shown", interval=0.1)
        assert await scripted.evaluate("seen") == [f"number {offset}" for offset in range(published)]
        assert await scripted.evaluate("gaps") == 0


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
