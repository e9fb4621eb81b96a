"""Who may do what, generated from the route tables: a route that is added without a guard fails here."""

import asyncio
import json
import re
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import httpx
import pytest
from aio_pika.exceptions import AMQPException
from aiormq.exceptions import ChannelAccessRefused

from bellhop.amqp import topology
from bellhop.observe.logs import _QUIET
from bellhop.web import tokens
from bellhop.web.auth import Require, Scope, new_key
from tests.faults.faces import TOKEN_KEY, Face, routes, three_faces
from tests.services.notifier_support import browser
from tests.support import Vhost, wait_until

# Open to everybody, because there is nothing secret there: health, documents, pages that ask for a key themselves,
# and the pages of the newsletter, each of whose links carries its own signed token.
OPEN = {
    "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/docs/oauth2-redirect", "/redoc",
    "/", "/console.js", "/live", "/live/live.css", "/live/live.js", "/subscribe", "/confirm", "/unsubscribe",
}  # fmt: skip

# Opened by a token that one service makes for another, and by no key.
FOR_SERVICES = {("GET", "/v1/attachments/x/content"), ("POST", "/v1/suppressions/among")}


@pytest.fixture
async def faces(vhost: Vhost, tmp_path: Path) -> AsyncIterator[list[Face]]:
    async with three_faces(vhost, tmp_path) as found:
        yield found


def guarded(face: Face) -> list[tuple[str, str]]:
    """Return every route that needs a key, with something in place of its parameters."""
    return [(method, re.sub(r"{[^}]*}", "x", path)) for method, path in routes(face) if path not in OPEN]


def scope_of(face: Face) -> dict[tuple[str, str], Scope]:
    """Return the scope that each route's guard asks for."""
    found = {}
    for route in face.app.router.routes:
        needs = getattr(route, "dependant", None)
        for each in needs.dependencies if needs is not None else ():
            if isinstance(each.call, Require):
                for method in route.methods:  # type: ignore[attr-defined]
                    found[method, re.sub(r"{[^}]*}", "x", route.path)] = each.call.scope  # type: ignore[attr-defined]
    return found


async def test_every_route_wants_a_key(faces: list[Face]) -> None:
    """No key, a wrong one, one of another service, an expired one: 401, and always the same words."""
    expired = tokens.mint(TOKEN_KEY, "x", -70, "stream", channels=["news"])
    forged = tokens.mint("another key, which is long enough: 0123456789", "x", 60, "stream", channels=["news"])
    unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJ4IiwiYXVkIjoic3RyZWFtIiwiZXhwIjo5OTk5OTk5OTk5fQ."
    for face in faces:
        async with face.client() as nobody:
            others = [other.key for other in faces if other is not face]
            keys = [None, new_key(), "nonsense", expired, forged, unsigned, f"{face.key}x", *others]
            assert len(guarded(face)) >= 2
            for method, path in guarded(face):
                answers = set()
                for key in keys:
                    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                    answer = await nobody.request(method, path, headers=headers)
                    assert answer.status_code == 401, (face.name, method, path, key, answer.text)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    document = answer.json()
                    answers.add((document["title"], document["detail"] if key else ""))
                assert len({detail for _, detail in answers if detail}) == 1, (face.name, path, answers)


async def test_every_route_wants_its_scope(faces: list[Face]) -> None:
    """A key with every scope but the one that a route names is 403 there, whatever else the request holds."""
    gateway, board = faces[0], faces[1]
    every = [scope for scope in Scope if scope is not Scope.ADMIN]
    async with gateway.client(gateway.key) as admin:
        wanted = scope_of(gateway)
        assert set(guarded(gateway)) - set(wanted) == FOR_SERVICES, "a route of the gateway has no guard"
        for method, path in FOR_SERVICES:
            assert (await admin.request(method, path)).status_code == 401, "not even the administrator's key"
        keys = {}
        for scope in set(wanted.values()):
            others = [other for other in every if other is not scope]
            answer = await admin.post("/v1/keys", json={"name": f"no-{scope.name}", "scopes": others})
            assert answer.status_code == 201, answer.text
            keys[scope] = answer.json()["key"]
        for (method, path), scope in wanted.items():
            answer = await admin.request(method, path, headers={"Authorization": f"Bearer {keys[scope]}"})
            assert answer.status_code == 403, (method, path, scope, answer.status_code, answer.text)
    wanted = scope_of(board)
    assert set(wanted) >= set(guarded(board)), "a route of the leaderboard has no guard"
    async with board.client() as client:
        for (method, path), scope in wanted.items():
            token = tokens.mint(
                TOKEN_KEY, "x", 60, "leaderboard", scopes=[other for other in every if other is not scope]
            )
            answer = await client.request(method, path, headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 403, (method, path, scope, answer.text)


async def test_what_belongs_to_another_key_is_not_there(faces: list[Face]) -> None:
    """Another key's task is 404 for every verb, and not one byte of it shows; its idempotency keys are its own."""
    gateway = faces[0]
    scopes = [scope for scope in Scope if scope is not Scope.ADMIN]
    async with gateway.client(gateway.key) as admin:
        made = [await admin.post("/v1/keys", json={"name": name, "scopes": scopes}) for name in ("ann", "eve")]
    ann, eve = (gateway.client(answer.json()["key"]) for answer in made)
    mail = {"to": "ada-secret@example.com", "subject": "Hello", "text": "Hello"}
    async with ann, eve:
        task = (await ann.post("/v1/mail", json=mail, headers={"Idempotency-Key": "k"})).json()["id"]
        for method, path in (("GET", ""), ("POST", "/cancel"), ("POST", "/retry")):
            answer = await eve.request(method, f"/v1/tasks/{task}{path}")
            assert answer.status_code == 404, (method, path)
            assert "ada-secret" not in answer.text
        assert (await eve.get("/v1/tasks")).json()["tasks"] == []
        other = await eve.post("/v1/mail", json=mail | {"subject": "Another"}, headers={"Idempotency-Key": "k"})
        assert other.status_code == 202
        assert other.json()["id"] != task


async def test_a_stream_shows_only_what_its_token_names(faces: list[Face]) -> None:
    """Not by asking for another channel, not by a wildcard, not by resuming behind somebody else's event."""
    gateway, notifier = faces[0], faces[2]
    mine = tokens.mint(TOKEN_KEY, "ann", 600, "stream", channels=["mine"])
    theirs = tokens.mint(TOKEN_KEY, "bob", 600, "stream", channels=["theirs"])
    async with gateway.client(gateway.key) as admin, browser(notifier.url, theirs) as other:
        while (event := await other.next()) is not None and event["type"] != "ready":
            pass
        for number in range(3):
            body = {"channels": ["theirs"], "title": f"secret {number}"}
            assert (await admin.post("/v1/notifications", json=body)).status_code == 202
        first = await other.next(10)
        assert first is not None
        last_id = other.last_event_id
        wishes = ["theirs", "mine,theirs", "*", "#", "the*", "theirs ", " theirs", "mine/../theirs", "THEIRS", "%2a"]
        for wish in wishes:
            async with browser(notifier.url, mine, channels=wish) as asking:
                assert asking.response.status_code == 403, wish
            async with notifier.client(mine) as client:
                answer = await client.get("/v1/poll", params={"channels": wish, "after": last_id, "wait": 0})
                assert answer.status_code == 403, wish
        async with browser(notifier.url, mine, last_event_id=last_id) as resumed:
            seen = []
            body = {"channels": ["mine"], "title": "the last one"}
            assert (await admin.post("/v1/notifications", json=body)).status_code == 202
            while (event := await resumed.next(10)) is not None:
                seen.append(event)
                if event["type"] == "notification.raised":
                    break
            assert "secret" not in json.dumps(seen)
            assert seen[-1]["data"]["title"] == "the last one"
        async with notifier.client(mine) as client:
            for after in ("none:-1", last_id, "0:0", "-1", "x" * 5000, "none:0", "ffffffff:0"):
                answer = await client.get("/v1/poll", params={"after": after, "wait": 0})
                assert answer.status_code == 200, answer.text
                assert "secret" not in answer.text


async def test_a_garbage_last_event_id_is_answered_with_a_gap(faces: list[Face]) -> None:
    """Whatever it holds: 200 and `gap`, or 400; never an error of ours."""
    notifier = faces[2]
    token = tokens.mint(TOKEN_KEY, "ann", 600, "stream", channels=["mine"])
    for value in ("garbage", "-5", "0" * 10_000, "99999999999999999999999:1", "a:-1", "a:b", ":", "1:2:3"):
        async with browser(notifier.url, token, headers={"Last-Event-ID": value}) as asking:  # type: ignore[arg-type]
            assert asking.response.status_code in (200, 400), value
            if asking.response.status_code == 200:
                event = await asking.next(10)
                assert event is not None
                assert event["type"] in ("gap", "ready"), value


async def test_answers_tell_nothing_about_the_inside(faces: list[Face]) -> None:
    """No version, no server header, no stack, no SQL; sniffing is off; pages may not be framed."""
    for face in faces:
        async with face.client(face.key) as client:
            for method, path in [*guarded(face), *(("GET", path) for path in OPEN)]:
                if path == "/v1/stream":
                    continue
                answer = await client.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
                # 503: the gateway asks a service that does not run here.
                assert answer.status_code < 500 or answer.status_code == 503, (face.name, method, path, answer.text)
                assert "server" not in answer.headers
                assert answer.headers.get("x-content-type-options") == "nosniff", (face.name, path)
                assert not re.search(r"Traceback|sqlalchemy|SELECT |File \"", answer.text), (face.name, method, path)
                if answer.headers.get("content-type", "").startswith("text/html") and not path.startswith("/docs"):
                    assert "frame-ancestors 'none'" in answer.headers.get("content-security-policy", ""), path


async def test_a_forged_address_does_not_buy_requests(faces: list[Face]) -> None:
    """The limit for those without a key holds whatever X-Forwarded-For says, unless a trusted proxy says it."""
    answers = []
    async with faces[0].client() as nobody:
        for number in range(700):
            headers = {"X-Forwarded-For": f"203.0.113.{number % 250}, 198.51.100.1"}
            answers.append((await nobody.get("/v1/tasks", headers=headers)).status_code)
            if answers[-1] == 429:
                break
    # The tests come from the loopback address, which is a trusted proxy: the last hop that is not trusted counts.
    assert 429 in answers


@pytest.mark.parametrize("user", sorted(topology.RIGHTS))
async def test_a_service_may_do_its_own_work_and_nothing_else(vhost: Vhost, user: str) -> None:
    """Every exchange and queue, write and read, for each service's user: refused unless the table allows it."""
    password = secrets.token_urlsafe(12)
    name = f"{user}-{secrets.token_hex(4)}"
    rights = topology.RIGHTS[user]
    await vhost._put(f"/api/users/{name}", {"password": password, "tags": ""})
    await vhost._put(
        f"/api/permissions/{vhost.name}/{name}",
        {"configure": rights.configure, "write": rights.write, "read": rights.read},
    )
    broker = vhost.broker
    connection = await aio_pika.connect(f"amqp://{name}:{password}@{broker.host}:{broker.amqp_port}/{vhost.name}")
    try:
        for exchange in ("", *(each.name for each in topology.EXCHANGES)):
            allowed = re.search(rights.write, exchange or "amq.default") is not None
            assert await _may_publish(connection, exchange) is allowed, f"{user} publishes to {exchange!r}"
        for queue in (each.name for each in topology.QUEUES):
            allowed = re.search(rights.read, queue) is not None
            assert await _may_read(connection, queue) is allowed, f"{user} reads {queue}"
        assert not await _may_declare(connection), f"{user} declares a queue"
    finally:
        await connection.close()
        await vhost.management.delete(f"/api/users/{name}")


async def _may_publish(connection: aio_pika.abc.AbstractConnection, exchange: str) -> bool:
    channel = await connection.channel()
    try:
        target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
        await target.publish(aio_pika.Message(b"{}"), "tests.nowhere", mandatory=False)
    except AMQPException as error:
        assert isinstance(error, ChannelAccessRefused), error
        return False
    await channel.close()
    return True


async def _may_read(connection: aio_pika.abc.AbstractConnection, name: str) -> bool:
    channel = await connection.channel()
    try:
        await channel.set_qos(prefetch_count=1)
        queue = await channel.get_queue(name, ensure=False)
        tag = await queue.consume(_ignore)
        await queue.cancel(tag)
    except AMQPException as error:
        assert isinstance(error, ChannelAccessRefused), error
        return False
    await channel.close()
    return True


async def _ignore(message: aio_pika.abc.AbstractIncomingMessage) -> None:
    """Leave it unacked."""


async def _may_declare(connection: aio_pika.abc.AbstractConnection) -> bool:
    channel = await connection.channel()
    try:
        await channel.declare_queue(f"tests-{secrets.token_hex(4)}", durable=True)
    except AMQPException as error:
        assert isinstance(error, ChannelAccessRefused), error
        return False
    return True


async def test_guest_is_nobody(vhost: Vhost) -> None:
    """There is no default password: the user that RabbitMQ comes with is gone."""
    broker = vhost.broker
    with pytest.raises((AMQPException, ConnectionError)):
        await aio_pika.connect(f"amqp://guest:guest@{broker.host}:{broker.amqp_port}/{vhost.name}")
    async with httpx.AsyncClient(trust_env=False, auth=("guest", "guest")) as client:
        answer = await client.get(f"http://{broker.host}:{broker.management_port}/api/whoami")
        assert answer.status_code == 401


async def test_logs_hold_no_secret(
    vhost: Vhost, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """After a run with wrong keys, right keys, tokens in URLs and lost connections, none of them is in the logs."""
    caplog.set_level("DEBUG")
    secret = f"S3CRET{secrets.token_hex(8)}"
    async with three_faces(vhost, tmp_path) as faces:
        gateway, _, notifier = faces
        wrong = new_key()
        async with gateway.client(wrong) as client:
            await client.get("/v1/tasks")
            await client.get(f"/v1/tasks?access_token={secret}")
        async with gateway.client(gateway.key) as client:
            made = (await client.post("/v1/keys", json={"name": "x", "scopes": ["mail:send"]})).json()["key"]
            await client.post("/v1/mail", json={"to": f"{secret}@example.com", "subject": secret, "text": secret})
            await client.post("/v1/mail", json={"to": f"{secret}", "subject": secret, "text": secret, secret: 1})
            granted = await client.post("/v1/stream-tokens", json={"subject": "a", "channels": ["news"]})
            token = granted.json()["token"]
        async with httpx.AsyncClient(trust_env=False, base_url=notifier.url) as browser_:
            await browser_.get("/v1/poll", params={"token": token, "wait": 0})
            await browser_.get("/v1/poll", params={"token": secret, "wait": 0})
            async with browser_.stream("GET", "/v1/stream", params={"token": token}) as stream:
                assert stream.status_code == 200
        await wait_until(lambda: vhost.close_connections(), 15, "the connections are cut")
        await asyncio.sleep(0.5)
    # What a service never lets through, whatever its log level: it would say every statement with its values.
    theirs = [record.getMessage() for record in caplog.records if not record.name.startswith(tuple(_QUIET))]
    said = "\n".join([*capfd.readouterr(), *theirs])
    for what in (vhost.broker.password, TOKEN_KEY, gateway.key, made, wrong, token, secret, token.split(".")[2]):
        assert what not in said, f"{what[:12]}… is in the logs"
    assert "listening" in said


def test_nothing_listens_but_on_the_loopback_address(vhost: Vhost) -> None:
    """The private node's ports cannot be reached from another address of this machine."""
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in addresses:
        if str(address).startswith("127."):
            continue
        for port in (vhost.broker.amqp_port, vhost.broker.management_port):
            with pytest.raises(OSError), socket.create_connection((str(address), port), timeout=2):
                pass
