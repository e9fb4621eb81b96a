"""What a key may do to other keys, and what one of few scopes cannot reach by another way."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.web.auth import Caller, Scope, new_key
from services.gateway.keys.store import Keys, Revocation
from tests.services.gateway_support import RunningGateway, running_gateway
from tests.support.broker import Vhost

STRUCTURED = {"Content-Type": "application/cloudevents+json"}


@pytest.fixture
async def gateway(vhost: Vhost, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as running:
        yield running


def event(type_: str, data: object, **changes: object) -> bytes:
    return orjson.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": type_, "data": data} | changes)


SCORES = {"scores": [{"board": "b", "player": "p", "score": 1}]}
NOTIFICATION = {"channels": ["news"], "title": "t"}


@pytest.mark.parametrize(
    ("type_", "data", "scope"),
    [("score.submitted", SCORES, "scores:write"), ("notification.raised", NOTIFICATION, "notifications:send")],
)
async def test_a_known_type_takes_its_own_scope(gateway: RunningGateway, type_: str, data: object, scope: str) -> None:
    """`events:write` alone is no way around the scope of a type that a service of ours reads."""
    weak = gateway.client(await gateway.make_key("weak", "events:write"))
    strong = gateway.client(await gateway.make_key("strong", "events:write", scope))
    async with weak, strong:
        refused = await weak.post("/v1/events", content=event(type_, data), headers=STRUCTURED)
        taken = await strong.post("/v1/events", content=event(type_, data), headers=STRUCTURED)

    assert (refused.status_code, taken.status_code) == (403, 202)
    assert scope in refused.json()["detail"]


async def test_no_client_speaks_for_us(gateway: RunningGateway) -> None:
    """A source or a channel of ours is 422, and the answer names the field."""
    source = await gateway.admin.post(
        "/v1/events", content=event("a.b", {}, source="bellhop/gateway"), headers=STRUCTURED
    )
    channel = await gateway.admin.post("/v1/notifications", json=NOTIFICATION | {"channels": ["news", "tasks:shop"]})
    hidden = await gateway.admin.post(
        "/v1/events", content=event("notification.raised", NOTIFICATION | {"channels": ["task:1"]}), headers=STRUCTURED
    )

    answers = (source, channel, hidden)
    assert [answer.status_code for answer in answers] == [422] * 3
    pointers = [answer.json()["errors"][0]["pointer"] for answer in answers]
    assert pointers == ["#/0/source", "#/channels/1", "#/0/data/channels/0"]


async def test_names_of_ours_are_refused(gateway: RunningGateway) -> None:
    """Not even the administrator makes a key that would own what is Bellhop's."""
    for name in ("admin", "event", "events", "newsletter", "bounce", "bellhop-x"):
        answer = await gateway.admin.post("/v1/keys", json={"name": name, "scopes": ["mail:read"]})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/name")


async def test_a_key_cannot_revoke_one_that_may_do_more(gateway: RunningGateway) -> None:
    """`keys:write` revokes what it could have made itself, and nothing else."""
    weak_key = await gateway.make_key("weak", "keys:write", "mail:read")
    equal_key = await gateway.make_key("equal", "mail:read")
    strong_key = await gateway.make_key("strong", "mail:send")
    admin_id = gateway.admin.headers["Authorization"].removeprefix("Bearer ")[3:11]
    async with gateway.client(weak_key) as weak:
        for key_id, lacking in ((strong_key[3:11], "mail:send"), (admin_id, "admin")):
            answer = await weak.delete(f"/v1/keys/{key_id}")
            assert answer.status_code == 403
            assert lacking in answer.json()["detail"]
        assert (await weak.delete(f"/v1/keys/{equal_key[3:11]}")).status_code == 204


async def test_a_key_cannot_take_the_name_of_one_that_may_do_more(gateway: RunningGateway) -> None:
    """A name owns tasks, so a new key of the name comes from one that may do all that its keys may."""
    await gateway.make_key("shop", "mail:send", "mail:read")
    weak_key = await gateway.make_key("weak", "keys:write", "mail:read")
    async with gateway.client(weak_key) as weak:
        answer = await weak.post("/v1/keys", json={"name": "shop", "scopes": ["mail:read"]})
    assert answer.status_code == 403
    assert "mail:send" in answer.json()["detail"]


async def test_one_of_two_administrators_stays(database_url: str) -> None:
    """Two administrators that revoke one another at the same time, by two gateways: one of them stays."""
    await migrate(database_url, "services.gateway")
    databases = [Database(database_url), Database(database_url)]
    first, second = (Keys(database) for database in databases)
    keys = [new_key(), new_key()]
    for key in keys:
        await first.create("x", [Scope.ADMIN], key)
    ids = [key[3:11] for key in keys]
    by = Caller("x", "x", frozenset({Scope.ADMIN}))

    results = await asyncio.gather(first.revoke(ids[0], by), second.revoke(ids[1], by))

    assert sorted(outcome for outcome, _ in results) == [Revocation.DONE, Revocation.LAST_ADMIN]
    for database in databases:
        await database.close()


async def test_a_token_for_a_channel_of_ours_takes_the_right_to_read_it(gateway: RunningGateway) -> None:
    """What `GET` would refuse to this key, the live stream does not show to it either."""
    granter = gateway.client(await gateway.make_key("shop", "streams:grant"))
    reader = gateway.client(await gateway.make_key("blog", "streams:grant", "mail:read", "leaderboards:read"))

    async with granter, reader:

        async def status(client: object, channel: str) -> int:
            answer = await client.post("/v1/stream-tokens", json={"subject": "ada", "channels": ["news", channel]})  # type: ignore[attr-defined]
            return int(answer.status_code)

        ours = ("tasks:shop", "tasks:admin", "task:1", "broadcast:1", "group:g", "leaderboard:chess")
        assert [await status(granter, channel) for channel in ours] == [403] * 6
        own = [await status(reader, channel) for channel in ("tasks:blog", "tasks:shop", "leaderboard:chess", "task:1")]
        assert own == [201, 403, 201, 403]
        assert await status(gateway.admin, "tasks:shop") == 201
        assert await status(granter, "user:ada") == 201
