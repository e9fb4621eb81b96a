"""Events over HTTP: notifications, scores, CloudEvents; and what may not come in."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx
import orjson
import pytest

from bellhop.contracts.base import now
from bellhop.contracts.notifications import MAX_SHOWN_BYTES
from bellhop.web import tokens
from tests.services.gateway_support import RunningGateway, envelope_headers, json, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost


@pytest.fixture
async def gateway(vhost: Vhost, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    channel = await vhost.channel()
    await (await channel.declare_queue("theirs", durable=True)).bind("events", "#")
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as running:
        yield running


async def take_scores(gateway: RunningGateway) -> list[dict[str, object]]:
    """Consume one message of scores: `basic.get` is not allowed on a queue with a single active consumer."""
    channel = await gateway.vhost.channel()
    queue = await channel.get_queue("leaderboard.scores", ensure=False)
    async with asyncio.timeout(10), queue.iterator() as messages:
        message = await anext(aiter(messages))
        await message.ack()
    await channel.close()
    return json(message.body)["scores"]  # type: ignore[return-value]


async def test_scores_travel_together(gateway: RunningGateway) -> None:
    """A list of scores is one message, each with the time it was taken unless it brought its own."""
    scores = [
        {"board": "chess", "player": "ada", "score": 12},
        {"board": "chess", "player": "bob", "score": -3.5, "at": "2026-01-02T03:04:05Z", "id": "game-1"},
    ]
    answer = await gateway.admin.post("/v1/scores", json=scores)

    assert answer.status_code == 202
    assert answer.json()["accepted"] == 2
    first, second = await take_scores(gateway)
    assert (first["player"], first["score"], "at" in first) == ("ada", 12, True)
    assert (second["at"], second["id"]) == ("2026-01-02T03:04:05+00:00", "game-1")


async def test_one_score_needs_no_list(gateway: RunningGateway) -> None:
    """A single object is taken as it is."""
    answer = await gateway.admin.post("/v1/scores", json={"board": "chess", "player": "ada", "score": 1})

    assert (answer.status_code, answer.json()["accepted"]) == (202, 1)


async def test_bad_scores_name_the_place(gateway: RunningGateway) -> None:
    """422 points at the score and field; none of the list is published."""
    good = {"board": "chess", "player": "ada", "score": 1}
    cases: list[tuple[object, str]] = [
        ([good, good | {"score": "12"}], "#/1/score"),
        ([good | {"player": "a b"}], "#/0/player"),
        ([good | {"rank": 1}], "#/0/rank"),
        ([good | {"score": 2**53 + 1}], "#/0/score"),
        ([good, good | {"at": "9999-12-31T23:59:59-12:00"}], "#/1/at"),
        ([good, good | {"at": (now() + timedelta(minutes=6)).isoformat()}], "#/1/at"),
        (good | {"at": "2999-01-01T00:00:00Z"}, "#/at"),
        ([good | {"score": True}], "#/0/score"),
        (good | {"board": "#"}, "#/board"),
        ({"board": "chess", "player": "ada"}, "#/score"),
    ]
    for body, pointer in cases:
        answer = await gateway.admin.post("/v1/scores", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
    for body in ([], [good] * 1001, "x", 5):
        assert (await gateway.admin.post("/v1/scores", json=body)).status_code == 422
    assert await gateway.vhost.depth("leaderboard.scores") == 0


async def test_a_notification_that_could_not_be_shown_is_refused(gateway: RunningGateway) -> None:
    """At acceptance, whichever way it comes in; the field is named."""
    large = {"channels": ["news"], "title": "t", "data": {"x": "x" * MAX_SHOWN_BYTES}}
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "notification.raised", "data": large}

    plain = await gateway.admin.post("/v1/notifications", json=large)
    wrapped = await gateway.admin.post(
        "/v1/events", content=orjson.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
    )
    token = await gateway.admin.post(
        "/v1/stream-tokens", json={"subject": "ada", "channels": [f"{n}{'x' * 120}" for n in range(100)]}
    )

    for answer, pointer in ((plain, "#/data"), (wrapped, "#/0/data/data"), (token, "#/channels")):
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_scores_under_one_idempotency_key_are_one_event(gateway: RunningGateway) -> None:
    """A request that comes again under its key is the same event id, published once."""
    headers = {"Idempotency-Key": "round-7"}
    body = {"board": "chess", "player": "ada", "score": 1}
    answers = [await gateway.admin.post("/v1/scores", json=body, headers=headers) for _ in range(3)]

    assert len({answer.json()["id"] for answer in answers}) == 1
    await take_scores(gateway)
    assert await gateway.vhost.depth("leaderboard.scores") == 0


async def test_a_cloudevent_in_structured_mode(gateway: RunningGateway) -> None:
    """Anybody's own queue gets a copy, attributes and all."""
    event = {
        "specversion": "1.0", "id": "e-1", "source": "/shop", "type": "order.placed", "subject": "order-9",
        "tenant": "t1", "data": {"total": 12},
    }  # fmt: skip
    answer = await gateway.admin.post(
        "/v1/events", content=orjson.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
    )

    assert (answer.status_code, answer.json()) == (202, {"id": "e-1"})
    message = await wait_until(lambda: gateway.vhost.get("theirs"), 10, "the copy for others")
    assert json(message.body) == {"total": 12}
    assert message.headers["cloudEvents:source"] == "/shop"
    assert message.headers["cloudEvents:tenant"] == "t1"


async def test_a_cloudevent_in_binary_mode(gateway: RunningGateway) -> None:
    """Attributes come as ce- headers, percent-encoded; the body is the data."""
    headers = {
        "Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "e-2", "ce-source": "/shop",
        "ce-type": "order.placed", "ce-subject": "caf%C3%A9",
    }  # fmt: skip
    answer = await gateway.admin.post("/v1/events", content=b'{"total": 3}', headers=headers)

    assert answer.status_code == 202, answer.text
    message = await wait_until(lambda: gateway.vhost.get("theirs"), 10, "the copy for others")
    assert message.headers["cloudEvents:subject"] == "café"


async def test_cloudevents_in_batch_mode(gateway: RunningGateway) -> None:
    """A batch is answered once, when all of it is confirmed."""
    events = [{"specversion": "1.0", "id": str(n), "source": "/s", "type": "a.b", "data": None} for n in range(3)]
    answer = await gateway.admin.post(
        "/v1/events", content=orjson.dumps(events), headers={"Content-Type": "application/cloudevents-batch+json"}
    )

    assert answer.json() == {"accepted": 3, "ids": ["0", "1", "2"]}
    assert await gateway.vhost.depth("theirs") == 3


async def test_events_that_we_read_ourselves_are_checked(gateway: RunningGateway) -> None:
    """A score that comes as a CloudEvent must be a score: 422 names the event and the field."""
    event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "score.submitted",
             "data": {"scores": [{"board": "b", "player": "p", "score": "many"}]}}  # fmt: skip
    answer = await gateway.admin.post(
        "/v1/events", content=orjson.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
    )

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "#/0/data/scores/0/score"


async def test_bad_cloudevents_are_refused(gateway: RunningGateway) -> None:
    """What is not CloudEvents 1.0 with JSON data is 4xx, and nothing is published."""
    good = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b"}
    bad: list[dict[str, object]] = [
        good | {"specversion": "0.3"},
        good | {"type": "x" * 256},
        good | {"source": ""},
        good | {"Upper": 1},
        good | {"nested": {"a": 1}},
        good | {"data_base64": "AA=="},
        {name: value for name, value in good.items() if name != "id"},
    ]
    for event in bad:
        answer = await gateway.admin.post(
            "/v1/events", content=orjson.dumps(event), headers={"Content-Type": "application/cloudevents+json"}
        )
        assert answer.status_code == 422, event
    assert (
        await gateway.admin.post("/v1/events", content=b"{}", headers={"Content-Type": "text/plain"})
    ).status_code == 415
    assert (await gateway.admin.post("/v1/events", json={})).status_code == 422
    assert await gateway.vhost.depth("theirs") == 0


async def test_a_stream_token_names_its_channels(gateway: RunningGateway) -> None:
    """The token opens exactly the channels that were asked for."""
    wish = {"subject": "ada", "channels": ["news", "user:ada"], "expires_in": 60}
    answer = await gateway.admin.post("/v1/stream-tokens", json=wish)

    claims = tokens.read(answer.json()["token"], "k" * 40, "stream")
    assert (claims.subject, claims.channels) == ("ada", ("news", "user:ada"))


async def test_a_dead_letter_is_listed_replayed_and_on_record(gateway: RunningGateway) -> None:
    """A dead letter shows its reason; replayed with a mended body it lies in its old queue as attempt 1."""
    headers = envelope_headers("mail.requested") | {
        "bellhop-reason": "rejected", "bellhop-error": "no such template", "bellhop-queue": "mail.normal",
        "bellhop-died-at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    for _ in range(2):  # at-least-once: the same dead letter may come twice
        await gateway.vhost.publish("dead", "mail.normal", b'{"broken": true}', headers=headers)

    async def listed() -> list[dict[str, object]]:
        found: list[dict[str, object]] = (await gateway.admin.get("/v1/dead-letters")).json()["dead_letters"]
        return found

    letters = await wait_until(listed, 10, "the dead letter is listed")
    assert len(letters) == 1
    assert (letters[0]["reason"], letters[0]["error"]) == ("rejected", "no such template")
    path = f"/v1/dead-letters/{letters[0]['id']}"
    assert (await gateway.admin.get(path)).json()["body"] == {"broken": True}

    answer = await gateway.admin.post(f"{path}/replay", json={"body": {"mended": True}})

    assert (answer.status_code, answer.json()) == (202, {"replayed": 1})
    message = await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "it is back on its queue")
    assert json(message.body) == {"mended": True}
    assert message.headers["attempt"] == 1
    assert (await gateway.admin.post(f"{path}/replay")).status_code == 404
    assert await listed() == []


async def test_the_system_page_shows_queues_and_replicas(gateway: RunningGateway) -> None:
    """Depths, replicas by their connections, and no alarm."""

    async def replicas() -> dict[str, object] | None:
        system = (await gateway.admin.get("/v1/system")).json()
        services = [s for s in system["broker"].get("services", []) if s["instance"] == "tests"]
        return system if services and len(services[0]["connections"]) == 2 else None

    system = await wait_until(replicas, 15, "the gateway's own connections show")
    broker = system["broker"]
    assert {"mail.urgent", "leaderboard.scores"} <= {queue["name"] for queue in broker["queues"]}  # type: ignore[index]
    assert broker["alarms"] == []  # type: ignore[index]


async def test_every_route_wants_a_key(gateway: RunningGateway) -> None:
    """Generated from the route table: without a key, or with a wrong one, 401; nothing but health and the console."""
    document = (await gateway.admin.get("/openapi.json")).json()
    public = {"/healthz", "/readyz"}
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as nobody:
        for path, operations in document["paths"].items():
            if path in public:
                continue
            for method in operations:
                for headers in ({}, {"Authorization": "Bearer bh_aaaaaaaa_" + "x" * 43}):
                    answer = await nobody.request(method, path.replace("{", "").replace("}", ""), headers=headers)
                    assert answer.status_code == 401, (method, path)


async def test_a_key_without_the_scope_is_forbidden(gateway: RunningGateway) -> None:
    """A key that may only read tasks cannot send, and cannot make itself a better key."""
    async with gateway.client(await gateway.make_key("reader", "mail:read")) as reader:
        assert (await reader.get("/v1/tasks")).status_code == 200
        assert (await reader.post("/v1/mail", json=mail())).status_code == 403
        assert (await reader.post("/v1/keys", json={"name": "x", "scopes": ["admin"]})).status_code == 403


async def test_a_revoked_key_stops_to_work(gateway: RunningGateway) -> None:
    """Within five seconds of its revocation a key is answered 401."""
    key = await gateway.make_key("short-lived", "mail:read")
    async with gateway.client(key) as client:
        assert (await client.get("/v1/tasks")).status_code == 200
        assert (await gateway.admin.delete(f"/v1/keys/{key[3:11]}")).status_code == 204

        async def refused() -> bool:
            return (await client.get("/v1/tasks")).status_code == 401

        await wait_until(refused, 7, "the key is refused")


async def test_a_thousand_scores_arrive_under_a_broker_outage(gateway: RunningGateway) -> None:
    """Events taken while the connection is cut are kept in the outbox and published afterwards."""
    await wait_until(lambda: gateway.vhost.close_connections(), 15, "the connections are cut")
    body = [{"board": "b", "player": f"p{n}", "score": n} for n in range(100)]
    answers = await asyncio.gather(*(gateway.admin.post("/v1/scores", json=body) for _ in range(10)))

    assert {answer.status_code for answer in answers} == {202}

    async def ten() -> bool:
        return await gateway.vhost.depth("leaderboard.scores") >= 10

    await wait_until(ten, 30, "all ten messages are there")


async def test_events_without_data_and_without_events(gateway: RunningGateway) -> None:
    """Binary mode with neither body nor content type, and an empty batch, are 202; what is no JSON is 415."""
    headers = {"ce-specversion": "1.0", "ce-id": "e-3", "ce-source": "/shop", "ce-type": "order placed/#"}
    batch = {"Content-Type": "application/cloudevents-batch+json"}

    no_body = await gateway.admin.post("/v1/events", headers=headers)
    empty = await gateway.admin.post("/v1/events", content=b"[]", headers=batch)
    text = await gateway.admin.post("/v1/events", content=b"x", headers=headers | {"Content-Type": "text/plain"})

    assert (no_body.status_code, empty.status_code, text.status_code) == (202, 202, 415)
    assert empty.json() == {"accepted": 0, "ids": []}
    message = await wait_until(lambda: gateway.vhost.get("theirs"), 10, "the event is kept")
    assert (message.body, message.headers["cloudEvents:type"]) == (b"null", "order placed/#")
