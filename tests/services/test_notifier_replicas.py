"""The notifier as a process, on a real RabbitMQ: what happens to its readers when processes and connections die."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import httpx

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from tests.services.notifier_support import browser, raise_notification, running, token
from tests.support import Vhost, wait_until
from tests.support.raw import Raw, field, publish, text
from tests.support.slow_broker import slow_to_deliver


def titles(documents: list[dict[str, Any]]) -> list[str]:
    return [document["data"]["title"] for document in documents]


async def test_an_event_reaches_every_replica_under_the_same_id(vhost: Vhost, tmp_path: Path) -> None:
    """So a reader resumes at any of them."""
    async with (
        running(vhost.amqp_url, tmp_path) as one,
        running(vhost.amqp_url, tmp_path) as two,
        browser(one.url, token()) as first,
        browser(two.url, token()) as second,
    ):
        await first.next()
        await second.next()
        for title in ("a", "b"):
            await raise_notification(vhost, title)
        assert await first.read(2) == await second.read(2)
        await raise_notification(vhost, "c")
        async with browser(two.url, token(), first.last_event_id) as resumed:
            assert titles(await resumed.read(1)) == ["c"]


async def test_ids_survive_a_restart(vhost: Vhost, tmp_path: Path) -> None:
    """What was missed in between is replayed by the new process, without a gap."""
    async with running(vhost.amqp_url, tmp_path) as before, browser(before.url, token()) as reader:
        await reader.next()
        await raise_notification(vhost, "a")
        await reader.next()
        await before.terminate()
    await raise_notification(vhost, "b")
    async with running(vhost.amqp_url, tmp_path) as after, browser(after.url, token(), reader.last_event_id) as again:
        assert titles(await again.read(1)) == ["b"]


async def test_ids_survive_a_restart_after_a_quiet_time(vhost: Vhost, tmp_path: Path) -> None:
    """The newest event stays good however old it is."""
    async with running(vhost.amqp_url, tmp_path) as before, browser(before.url, token()) as reader:
        await reader.next()
        await raise_notification(vhost, "a")
        await reader.next()
    await asyncio.sleep(1.5)  # longer than the window below
    async with (
        running(vhost.amqp_url, tmp_path, window_seconds="1") as after,
        browser(after.url, token(), reader.last_event_id) as again,
    ):
        await raise_notification(vhost, "b")
        assert titles(await again.read(1)) == ["b"]


async def test_ids_survive_a_restart_while_rabbitmq_is_slow(vhost: Vhost, tmp_path: Path) -> None:
    """A stream whose first message comes seconds after its consumer was accepted is not taken for an empty one."""
    async with running(vhost.amqp_url, tmp_path) as before, browser(before.url, token()) as reader:
        await reader.next()
        await raise_notification(vhost, "a")
        await reader.next()
    await raise_notification(vhost, "b")
    broker = vhost.broker
    async with slow_to_deliver(broker.host, broker.amqp_port, 3) as port:
        slow_url = vhost.amqp_url.replace(f"@{broker.host}:{broker.amqp_port}", f"@127.0.0.1:{port}")
        assert slow_url != vhost.amqp_url
        async with running(slow_url, tmp_path) as after, browser(after.url, token(), reader.last_event_id) as again:
            assert titles(await again.read(1)) == ["b"]


async def test_an_event_published_twice_is_shown_once(vhost: Vhost, tmp_path: Path) -> None:
    """A publisher that had no answer publishes again, with the same event id."""
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        for title in ("a", "a", "b"):
            await raise_notification(vhost, title)
        assert titles(await reader.read(2)) == ["a", "b"]


async def test_readers_do_not_notice_a_lost_connection_to_rabbitmq(vhost: Vhost, tmp_path: Path) -> None:
    """They stay, and what was published meanwhile comes in order."""
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        await raise_notification(vhost, "a")
        await reader.next()
        # The management API lists a connection some seconds after it was opened.
        await wait_until(vhost.close_connections, timeout=15)
        await raise_notification(vhost, "b")
        shown = await reader.next(timeout=20)
        assert shown is not None
        assert titles([shown]) == ["b"]


async def test_a_message_nobody_can_read_stops_nothing(vhost: Vhost, tmp_path: Path) -> None:
    """Anybody may publish to the exchange, anything."""
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        envelope = Envelope(type="notification.raised", source="/tests")
        await vhost.publish("notifications", "", b"no envelope")
        await vhost.publish("notifications", "", b"\xff", headers=to_headers(Message(b"", envelope)))
        await raise_notification(vhost, "a")
        assert titles(await reader.read(1)) == ["a"]


POISON = {
    "a time beyond the year 9999": Raw(timestamp=2**63 - 1),
    "a time beyond the year 9999 as a header": Raw(field(b"t", b"T", struct.pack(">Q", 2**63 - 1))),
    "a header whose name is not UTF-8": Raw(text(b"\xff", b"x")),
    "a type that is not UTF-8": Raw(type=b"\xff"),
}


async def test_properties_that_cannot_be_decoded_stop_nothing(vhost: Vhost, tmp_path: Path) -> None:
    """The connection stays open, the reader is told no gap, and what lies behind them is shown."""
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        for properties in POISON.values():
            await asyncio.to_thread(publish, vhost.amqp_url, "notifications", "", properties)
        await raise_notification(vhost, "a")
        assert titles(await reader.read(1)) == ["a"]
        async with httpx.AsyncClient(trust_env=False) as http:
            counted = (await http.get(f"{notifier.url}/metrics")).text
        assert f'bellhop_notifier_not_shown_total{{reason="foreign"}} {float(len(POISON))}' in counted


async def test_they_are_passed_at_the_start_and_after_a_cut(vhost: Vhost, tmp_path: Path) -> None:
    """Also as the first message of the stream, and as the last one before a lost connection: no gap is told."""
    await asyncio.to_thread(publish, vhost.amqp_url, "notifications", "", Raw(timestamp=2**63 - 1))
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        await raise_notification(vhost, "a")
        await asyncio.to_thread(publish, vhost.amqp_url, "notifications", "", Raw(text(b"\xff", b"x")))
        assert titles(await reader.read(1)) == ["a"]
        await wait_until(vhost.close_connections, timeout=15)
        await raise_notification(vhost, "b")
        shown = await reader.next(timeout=20)
        assert shown is not None
        assert titles([shown]) == ["b"]


async def test_sigterm_ends_streams_and_then_the_process(vhost: Vhost, tmp_path: Path) -> None:
    """Long before the time that work in hand may take; exit code 0."""
    async with running(vhost.amqp_url, tmp_path) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        loop = asyncio.get_running_loop()
        began = loop.time()
        ending = asyncio.create_task(notifier.terminate())
        assert (await reader.next() or {})["type"] == "closing"
        assert await reader.next() is None
        assert await ending == 0
        assert loop.time() - began < 5


async def test_without_rabbitmq_it_runs_but_is_not_ready(tmp_path: Path) -> None:
    """And says what it waits for."""
    async with (
        running("amqp://nobody@127.0.0.1:1/", tmp_path, wait_ready=False) as notifier,
        httpx.AsyncClient(trust_env=False, base_url=notifier.url) as client,
    ):

        async def ask() -> httpx.Response | None:
            try:
                return await client.get("/readyz")
            except httpx.TransportError:
                return None

        response = await wait_until(ask)
        assert response is not None
        assert response.status_code == 503
        assert "RabbitMQ" in response.json()["checks"]["stream"]
        assert (await client.get("/healthz")).status_code == 200
