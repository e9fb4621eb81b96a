"""Server-Sent Events, WebSocket and long poll, over real sockets; the test feeds the hub in RabbitMQ's place."""

import asyncio
import json
import logging
import socket
from collections import Counter

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from bellhop.web.rate_limit import Rate
from bellhop.web.request_limits import Limits
from bellhop.web.tokens import LEEWAY_SECONDS
from services.notifier import metrics
from services.notifier.come_back import FIRST_MS
from services.notifier.log import START
from tests.services.notifier_support import NEWS, Browser, browser, notification, served, token
from tests.support import wait_until


def titles(documents: list[dict[str, object]]) -> list[str]:
    return [document["data"]["title"] for document in documents]  # type: ignore[index]


def read_nothing(url: str) -> socket.socket:
    """Open a stream, and leave everything that comes in the buffers."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
    reader.settimeout(5)
    reader.connect(("127.0.0.1", httpx.URL(url).port))
    reader.sendall(f"GET /v1/stream?token={token()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return reader


# --- streams ---


async def test_a_new_reader_is_told_where_it_stands_and_then_shown_events() -> None:
    """`ready` has the id of the log's end, and every event has its own."""
    async with served() as notifier, browser(notifier.url, token()) as reader:
        assert await reader.next() == {"type": "ready", "id": START, "data": {"channels": [NEWS]}}
        assert reader.last_event_id == START
        event = notification(0)
        await notifier.publish(event)
        shown = await reader.next()
        assert shown == json.loads(event.json(NEWS))
        assert reader.last_event_id == event.id


async def test_the_head_of_a_stream_keeps_caches_and_proxies_away() -> None:
    """And tells browsers to come back at different moments."""
    async with served() as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        headers = reader.response.headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store, no-transform"
        assert headers["x-accel-buffering"] == "no"
        assert reader.retry is not None
        assert 1000 <= reader.retry <= 5000


async def test_a_reader_that_comes_back_gets_exactly_what_it_missed() -> None:
    """Nothing twice, nothing lost, in order."""
    async with served() as notifier:
        await notifier.publish(*(notification(offset) for offset in range(5)))
        async with browser(notifier.url, token(), notification(1).id) as reader:
            await notifier.publish(notification(5))
            assert titles(await reader.read(4)) == ["number 2", "number 3", "number 4", "number 5"]


async def test_the_id_may_stand_in_the_query() -> None:
    """Where no header can be set; what the browser remembers by itself is newer and wins."""
    async with served() as notifier:
        await notifier.publish(*(notification(offset) for offset in range(3)))
        async with browser(notifier.url, token(), last_event_id=None) as reader:
            await reader.next()
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"{notifier.url}/v1/stream?token={token()}&last_event_id={notification(0).id}"
            async with client.stream("GET", url) as response:
                lines = response.aiter_lines()
                assert await anext(line async for line in lines if line.startswith("id: ")) == (
                    f"id: {notification(1).id}"
                )
            async with client.stream("GET", url, headers={"Last-Event-ID": notification(1).id}) as response:
                lines = response.aiter_lines()
                assert await anext(line async for line in lines if line.startswith("id: ")) == (
                    f"id: {notification(2).id}"
                )


@pytest.mark.parametrize("last_event_id", ["0badc0de:8", notification(2).id, "nonsense", START])
async def test_whoever_cannot_be_resumed_is_told_of_the_gap_first(last_event_id: str) -> None:
    """Never a silent hole; live afterwards."""
    async with served(window_events=3) as notifier:
        await notifier.publish(*(notification(offset) for offset in range(9)))
        async with browser(notifier.url, token(), last_event_id) as reader:
            gap = await reader.next()
            assert gap is not None
            assert (gap["type"], gap["id"]) == ("gap", notification(8).id)
            assert gap["data"]["after"] == last_event_id
            await notifier.publish(notification(9))
            assert titles(await reader.read(1)) == ["number 9"]


async def test_an_id_of_a_replica_that_is_ahead_is_waited_for() -> None:
    """This one reads the same event a moment later: no gap."""
    async with served() as notifier:
        await notifier.publish(notification(0))
        async with browser(notifier.url, token(), notification(1).id) as reader:
            await notifier.publish(notification(1), notification(2))
            assert titles(await reader.read(1)) == ["number 2"]


async def test_a_long_absence_is_replayed_whole() -> None:
    """Also when it is many times what a slow reader's buffer may hold."""
    async with served() as notifier:
        await notifier.publish(*(notification(offset, body="x" * 16_000) for offset in range(300)))
        async with browser(notifier.url, token(), notification(0).id) as reader:
            await notifier.publish(notification(300))
            assert titles(await reader.read(300)) == [f"number {offset}" for offset in range(1, 301)]


async def test_nobody_reads_a_channel_that_the_token_does_not_name() -> None:
    """Live or replayed; a name that begins alike is another name."""
    async with served() as notifier:
        await notifier.publish(notification(0))
        async with (
            browser(notifier.url, token("user:1")) as live,
            browser(notifier.url, token("user:1"), notification(0).id) as resumed,
        ):
            await live.next()
            await notifier.publish(
                notification(1, "user:2"),
                notification(2, "user:10"),
                notification(3, "user"),
                notification(4, "users"),
                notification(5, "user:2", "user:1", title="for both"),
            )
            for reader in (live, resumed):
                shown = await reader.next()
                assert shown is not None
                assert (shown["channel"], shown["data"]["title"]) == ("user:1", "for both")


async def test_an_event_on_several_of_a_readers_channels_is_shown_once() -> None:
    """To each reader on one of its own channels."""
    async with (
        served() as notifier,
        browser(notifier.url, token("a", "b")) as both,
        browser(notifier.url, token("b")) as one,
    ):
        await both.next()
        await one.next()
        await notifier.publish(notification(0, "a", "b"), notification(1, "a", "b"))
        assert titles(await both.read(2)) == ["number 0", "number 1"]
        assert titles(await one.read(2)) == ["number 0", "number 1"]


async def test_a_reader_may_narrow_its_channels() -> None:
    """To some of those that its token names."""
    async with served() as notifier, browser(notifier.url, token("a", "b"), channels="b") as reader:
        ready = await reader.next()
        assert ready is not None
        assert ready["data"] == {"channels": ["b"]}
        await notifier.publish(notification(0, "a"), notification(1, "b"))
        assert titles(await reader.read(1)) == ["number 1"]


@pytest.mark.parametrize("channels", ["b", "a,b", "*", "A", ","])
async def test_other_channels_are_refused(channels: str) -> None:
    """Not left out in silence."""
    async with served() as notifier, browser(notifier.url, token("a"), channels=channels) as reader:
        assert reader.response.status_code == 403
        assert reader.response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "bad",
    ["", "nonsense", token(expires_in=-3600), token(audience="elsewhere"), token()[:-4] + "AAAA"],
    ids=["missing", "nonsense", "expired", "of another audience", "forged"],
)
@pytest.mark.parametrize("path", ["/v1/stream", "/v1/poll"])
async def test_without_a_valid_token_nothing_is_read(path: str, bad: str) -> None:
    """401, as RFC 6750 wants it."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(notifier.url + path, params={"token": bad})
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_stream_ends_when_its_token_does() -> None:
    """And says so, so that the page gets a new token instead of trying again with the old one."""
    async with served() as notifier, browser(notifier.url, token(expires_in=2 - LEEWAY_SECONDS)) as reader:
        assert (await reader.next() or {})["type"] == "ready"
        assert (await reader.next() or {})["type"] == "expired"
        assert await reader.next() is None


async def test_a_token_in_its_leeway_reads_as_long_as_it_is_taken() -> None:
    """A poll that is answered without waiting, or a stream that ends, would be asked for again and again."""
    late = token(expires_in=-20)
    async with served() as notifier, httpx.AsyncClient(trust_env=False, base_url=notifier.url) as client:
        query = {"token": late, "after": notifier.hub.log.end_id, "wait": "1.5"}
        began = asyncio.get_running_loop().time()
        polling = asyncio.create_task(client.get("/v1/poll", params=query))
        async with browser(notifier.url, late) as reader:
            assert (await reader.next() or {})["type"] == "ready"
            assert (await polling).json()["events"] == []
            assert asyncio.get_running_loop().time() - began > 1.4
            await notifier.publish(notification(0))
            assert (await reader.next() or {})["type"] == "notification.raised"


async def test_a_quiet_stream_is_pinged_with_the_newest_id() -> None:
    """Else whoever has quiet channels would come back with an id that left the window long ago."""
    async with served(ping_seconds=1) as notifier, browser(notifier.url, token("quiet")) as reader:
        await reader.next()
        await notifier.publish(notification(0, "busy"))
        waiting = asyncio.create_task(reader.next(timeout=10))
        await wait_until(lambda: reader.last_event_id == notification(0).id)
        assert not waiting.done(), "a ping is no event"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_slow_reader_is_cut_off_and_can_resume() -> None:
    """Others do not notice; its last words say why."""
    async with served() as notifier, browser(notifier.url, token()) as healthy:
        await healthy.next()
        slow = read_nothing(notifier.url)
        await wait_until(lambda: len(notifier.hub._channels[NEWS]) == 2)
        before = metrics.EVICTIONS._value.get()
        offset = 0
        while metrics.EVICTIONS._value.get() == before:
            assert offset < 2000, "never cut off"
            await notifier.publish(notification(offset, body="x" * 16_000))
            assert titles(await healthy.read(1)) == [f"number {offset}"]
            offset += 1
        with slow:
            received = b""
            while data := await asyncio.to_thread(slow.recv, 2**20):
                received += data
        assert received.endswith(b"0\r\n\r\n")
        assert b"event: evicted" in received
        await wait_until(lambda: len(notifier.hub._channels[NEWS]) == 1)
        # What the slow one has is whole, and it goes on from there.
        last = received.rpartition(b"\nevent: notification.raised")[0].rpartition(b"id: ")[2].decode()
        async with browser(notifier.url, token(), last) as resumed:
            await notifier.publish(notification(offset))
            following = int(last.partition(":")[2]) + 1
            missed = await resumed.read(offset - following + 1)
            assert titles(missed) == [f"number {number}" for number in range(following, offset + 1)]


async def test_a_slow_reader_that_never_reads_again_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last words are not waited for longer than they may take."""
    monkeypatch.setattr("services.notifier.subscribers.LINGER_SECONDS", 0.2)
    async with served() as notifier:
        with read_nothing(notifier.url):
            await wait_until(lambda: notifier.hub._channels[NEWS])
            for offset in range(1000):
                await notifier.publish(notification(offset, body="x" * 16_000))
            await wait_until(lambda: not notifier.hub._subscribers, description="the place is free again")


async def busy(reader: Browser) -> int:
    """Return the status that a refusal which passes would have; to an EventSource every status but 200 is final."""
    assert reader.response.status_code == 200
    assert reader.response.headers["content-type"].startswith("text/event-stream")
    document = await reader.next() or {}
    assert document["type"] == "busy"
    assert document["data"]["detail"]
    assert reader.retry is not None
    assert reader.retry >= FIRST_MS
    assert reader.last_event_id is None, "the client keeps the id that it has"
    assert await reader.next() is None
    return int(document["data"]["status"])


async def test_a_full_process_says_when_to_come_back() -> None:
    """In a stream, which an EventSource takes up again; a place is free again as soon as somebody leaves."""
    async with served(max_subscribers=1) as notifier:
        async with browser(notifier.url, token(subject="first")) as reader:
            await reader.next()
            async with browser(notifier.url, token(subject="second")) as refused:
                assert await busy(refused) == 503
        await wait_until(lambda: not notifier.hub._subscribers)
        async with browser(notifier.url, token(subject="second")) as reader:
            assert await reader.next()


async def test_one_subject_cannot_take_all_places() -> None:
    """It is told so; others still find one."""
    async with served(max_subscribers_per_subject=1) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        async with browser(notifier.url, token()) as refused:
            assert await busy(refused) == 429
        async with browser(notifier.url, token(subject="bob")) as other:
            assert await other.next()


async def test_too_many_requests_of_a_subject_end_no_stream_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that connects too often is told so in a stream."""
    monkeypatch.setattr("services.notifier.app.LIMITS", Limits(subject_rate=Rate(0.001, 1)))
    async with served() as notifier:
        async with browser(notifier.url, token()) as reader:
            await reader.next()
        async with browser(notifier.url, token()) as refused:
            assert await busy(refused) == 429


async def test_an_invalid_token_is_final() -> None:
    """401, with a sentence: only another token helps."""
    async with served() as notifier, browser(notifier.url, "nonsense") as refused:
        assert refused.response.status_code == 401
        assert "token" in refused.response.json()["detail"]


async def test_an_address_with_bad_tokens_locks_out_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many people may share an address: valid tokens are counted by their subjects."""
    monkeypatch.setattr("services.notifier.app.LIMITS", Limits(address_rate=Rate(0.001, 4)))
    async with served() as notifier, httpx.AsyncClient(trust_env=False, base_url=notifier.url) as client:

        async def ask(path: str, given: str) -> int:
            return (await client.get(path, params={"token": given})).status_code

        statuses = {path: Counter[int]() for path in ("/v1/poll", "/v1/stream")}
        for number in range(12):
            path = ("/v1/poll", "/v1/stream")[number % 2]
            statuses[path][await ask(path, "nonsense")] += 1
        for path, seen in statuses.items():
            assert set(seen) == {401, 429}, (path, "a flood of bad tokens is answered with 429")
        assert {await ask("/v1/poll", token(subject=f"person {number}")) for number in range(50)} == {200}
        async with browser(notifier.url, token(subject="reader")) as reader:
            assert (await reader.next() or {})["type"] == "ready"
        async with connect(f"{notifier.websocket_url}?token={token(subject='socket')}", proxy=None) as socket:
            assert json.loads(await socket.recv())["type"] == "ready"


async def test_polls_of_a_subject_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 with Retry-After, also for a token in the header; another subject at the same address is served."""
    monkeypatch.setattr("services.notifier.app.LIMITS", Limits(subject_rate=Rate(0.001, 1)))
    async with served() as notifier, httpx.AsyncClient(trust_env=False, base_url=notifier.url) as client:
        ann = {"Authorization": f"Bearer {token()}"}
        assert (await client.get("/v1/poll", headers=ann)).status_code == 200
        refused = await client.get("/v1/poll", headers=ann)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["violated-policies"] == ["subject"]
        assert (await client.get("/v1/poll", params={"token": token(subject="bob")})).status_code == 200


async def test_draining_ends_every_stream_and_takes_no_more() -> None:
    """Each is told to come back, at its own moment."""
    async with served() as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        reader.retry = None
        notifier.hub.drain("restarting")
        assert (await reader.next() or {})["type"] == "closing"
        assert reader.retry is not None
        assert await reader.next() is None
        async with browser(notifier.url, token()) as late:
            assert await busy(late) == 503


async def test_a_stream_that_begins_anew_is_a_gap_for_all() -> None:
    """What comes next does not follow what was before."""
    async with served() as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        await notifier.publish(notification(10))
        await reader.next()
        notifier.hub.restart("The event stream was made anew.")
        await notifier.publish(notification(0))
        assert (await reader.next() or {})["type"] == "gap"
        assert titles(await reader.read(1)) == ["number 0"]
        async with browser(notifier.url, token(), notification(10).id) as resumed:
            assert (await resumed.next() or {})["type"] == "gap"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_a_stream_is_only_got(method: str) -> None:
    """405 says which method there is."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        response = await client.request(method, f"{notifier.url}/v1/stream", params={"token": token()})
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


async def test_head_of_a_stream_ends() -> None:
    """It says what GET would say, and admits no reader."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        response = await client.head(f"{notifier.url}/v1/stream", params={"token": token()})
        assert (response.status_code, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")


async def test_only_pages_of_allowed_sites_may_read() -> None:
    """The exact origin, for the stream, the poll and the browser's question before them."""
    good, bad = "https://shop.example", "https://shop.example.evil.example"
    async with served(live_origins=[good]) as notifier, httpx.AsyncClient(trust_env=False) as client:
        for origin, allowed in ((good, good), (bad, None)):
            async with browser(notifier.url, token(), headers={"Origin": origin}) as reader:
                await reader.next()
                assert reader.response.headers.get("access-control-allow-origin") == allowed
            response = await client.get(
                f"{notifier.url}/v1/poll", params={"token": token()}, headers={"Origin": origin}
            )
            assert response.headers.get("access-control-allow-origin") == allowed
            question = {
                "Origin": origin,
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization, last-event-id",
            }
            response = await client.options(f"{notifier.url}/v1/stream", headers=question)
            assert response.is_success == (allowed is not None)


# --- sockets ---


async def test_a_socket_is_shown_the_same() -> None:
    """The token in the first message, events as text messages, each with its id."""
    async with served() as notifier, connect(notifier.websocket_url, proxy=None) as client:
        await client.send(json.dumps({"token": token("a", "b"), "channels": ["b"]}))
        assert json.loads(await client.recv()) == {"type": "ready", "id": START, "data": {"channels": ["b"]}}
        events = [notification(0, "a"), notification(1, "b"), notification(2, "b", body="x" * 16_000)]
        await notifier.publish(*events)
        for event in events[1:]:
            assert json.loads(await client.recv()) == json.loads(event.json("b"))
        assert not client.protocol.extensions, "nothing is deflated"


async def test_a_socket_resumes() -> None:
    """From the id in its first message."""
    async with served() as notifier, connect(notifier.websocket_url, proxy=None) as client:
        await notifier.publish(*(notification(offset) for offset in range(3)))
        await client.send(json.dumps({"token": token(), "last_event_id": notification(0).id}))
        assert titles([json.loads(await client.recv()) for _ in range(2)]) == ["number 1", "number 2"]


async def test_a_socket_of_a_program_may_send_its_token_as_a_header() -> None:
    """Then nothing needs to be said."""
    headers = {"Authorization": f"Bearer {token()}"}
    async with served() as notifier, connect(notifier.websocket_url, additional_headers=headers, proxy=None) as client:
        assert json.loads(await client.recv())["type"] == "ready"


async def test_a_quiet_socket_is_pinged_with_the_newest_id() -> None:
    """As a stream is."""
    async with served(ping_seconds=1) as notifier, connect(notifier.websocket_url, proxy=None) as client:
        await client.send(json.dumps({"token": token("quiet")}))
        await client.recv()
        await notifier.publish(notification(0, "busy"))
        assert json.loads(await client.recv()) == {"type": "ping", "id": notification(0).id, "data": {}}


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (json.dumps({"token": "nonsense"}), 3000),
        (json.dumps({"token": token("a"), "channels": ["b"]}), 3003),
        ("{", 1008),
        (json.dumps({"token": token(), "more": 1}), 1008),
        ("x" * 70_000, 1009),
    ],
    ids=["token", "channel", "json", "field", "size"],
)
async def test_a_wrong_first_message_closes_the_socket(first: str, code: int) -> None:
    """With a code that says why."""
    async with served() as notifier, connect(notifier.websocket_url, proxy=None) as client:
        await client.send(first)
        assert json.loads(await client.recv())["type"] == "problem"
        await client.wait_closed()
        assert client.close_code == code


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (f"token={token(audience='other')}", 3000),
        (f"token={token('a')}&channels=b", 3003),
        (f"token={token()}&more=1", 1008),
    ],
    ids=["token", "channel", "parameter"],
)
async def test_a_wrong_address_of_a_socket_is_said_in_the_socket(query: str, code: int) -> None:
    """A page cannot see the status of a refused handshake, and would try again and again."""
    async with served() as notifier, connect(f"{notifier.websocket_url}?{query}", proxy=None) as client:
        assert json.loads(await client.recv())["type"] == "problem"
        await client.wait_closed()
        assert client.close_code == code


async def test_a_socket_without_a_place_is_told_to_try_later() -> None:
    """Code 1013."""
    async with served(max_subscribers_per_subject=1) as notifier, browser(notifier.url, token()) as reader:
        await reader.next()
        async with connect(f"{notifier.websocket_url}?token={token()}", proxy=None) as client:
            assert json.loads(await client.recv())["data"]["status"] == 429
            await client.wait_closed()
            assert client.close_code == 1013


async def test_a_socket_closes_when_its_token_is_over() -> None:
    """Code 3000, after a message that says so."""
    async with served() as notifier, connect(notifier.websocket_url, proxy=None) as client:
        await client.send(json.dumps({"token": token(expires_in=2 - LEEWAY_SECONDS)}))
        assert json.loads(await client.recv())["type"] == "ready"
        assert json.loads(await client.recv())["type"] == "expired"
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3000


async def test_a_page_of_another_site_gets_no_socket() -> None:
    """A browser sends its origin and asks nobody before it opens one."""
    async with served(live_origins=["https://shop.example"]) as notifier:
        with pytest.raises(InvalidStatus) as refused:
            async with connect(notifier.websocket_url, origin="https://evil.example", proxy=None):
                pass
        assert refused.value.response.status_code == 403
        async with connect(notifier.websocket_url, origin="https://shop.example", proxy=None):
            pass
        async with connect(notifier.websocket_url, origin=notifier.url, proxy=None):  # type: ignore[arg-type]
            pass


async def test_a_token_in_the_address_of_a_socket_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn logs the address of every socket that it accepts."""
    caplog.set_level(logging.INFO, "uvicorn")
    secret = token()
    async with served() as notifier, connect(f"{notifier.websocket_url}?token={secret}", proxy=None) as client:
        assert json.loads(await client.recv())["type"] == "ready"
    assert "[accepted]" in caplog.text
    assert secret not in caplog.text


# --- polls ---


async def test_a_poll_without_an_id_says_where_to_begin() -> None:
    """At once."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        await notifier.publish(notification(0))
        response = await client.get(f"{notifier.url}/v1/poll", params={"token": token()})
        assert response.json() == {"events": [], "next": notification(0).id, "gap": None}
        assert response.headers["cache-control"] == "no-store"


async def test_a_poll_waits_for_an_event() -> None:
    """And answers as soon as there is one on its channels."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False, timeout=10) as client:
        query = {"token": token(), "after": START, "wait": 20}
        answer = asyncio.create_task(client.get(f"{notifier.url}/v1/poll", params=query))
        await wait_until(lambda: notifier.hub._channels.get(NEWS))
        await notifier.publish(notification(0, "other"))
        await notifier.publish(notification(1), notification(2))
        document = (await answer).json()
        assert titles(document["events"]) == ["number 1", "number 2"]
        assert document["next"] == notification(2).id


async def test_a_poll_gives_up_after_its_time() -> None:
    """With no event, and an id that has moved past those of others."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        query = {"token": token(), "after": START, "wait": 0.2}
        answer = asyncio.create_task(client.get(f"{notifier.url}/v1/poll", params=query))
        await wait_until(lambda: notifier.hub._channels.get(NEWS))
        await notifier.publish(notification(0, "other"))
        assert (await answer).json() == {"events": [], "next": notification(0).id, "gap": None}


async def test_polls_one_after_the_other_miss_nothing() -> None:
    """A long absence comes in several answers."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        await notifier.publish(*(notification(offset, body="x" * 16_000) for offset in range(50)))
        seen, after, answers = [], START, 0
        while len(seen) < 50:
            response = await client.get(f"{notifier.url}/v1/poll", params={"token": token(), "after": after, "wait": 0})
            document = response.json()
            seen += titles(document["events"])
            after, answers = document["next"], answers + 1
        assert seen == [f"number {offset}" for offset in range(50)]
        assert answers > 2


async def test_a_poll_tells_of_a_gap() -> None:
    """With the id behind which events are missing, and the one to go on from."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        await notifier.publish(notification(5))
        response = await client.get(f"{notifier.url}/v1/poll", params={"token": token(), "after": "0badc0de:3"})
        document = response.json()
        assert (document["events"], document["next"]) == ([], notification(5).id)
        assert document["gap"]["after"] == "0badc0de:3"


@pytest.mark.parametrize("wait", ["-1", "56", "nan", "long"])
async def test_a_poll_waits_only_so_long(wait: str) -> None:
    """Proxies cut off what takes a minute."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        response = await client.get(f"{notifier.url}/v1/poll", params={"token": token(), "wait": wait})
        assert response.status_code == 422


# --- the pages ---


async def test_the_documents_know_the_stream() -> None:
    """Although FastAPI does not serve it."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        paths = (await client.get(f"{notifier.url}/openapi.json")).json()["paths"]
        assert {"/v1/stream", "/v1/poll"} <= set(paths)


async def test_the_page_for_people_needs_nothing_from_elsewhere() -> None:
    """And lets nothing out: its policy allows its own files alone."""
    async with served() as notifier, httpx.AsyncClient(trust_env=False) as client:
        page = await client.get(f"{notifier.url}/live")
        assert page.status_code == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for path in ("/live/live.js", "/live/live.css"):
            assert f'"{path}"' in page.text
            assert (await client.get(notifier.url + path)).status_code == 200
