"""`Idempotency-Key`, over the whole route table: two gateways on one database, and every POST there is."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.base import new_id, now
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.group_commit import GroupCommit
from bellhop.sql.migrations import migrate
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from services.gateway.acceptance import idempotent_route
from services.gateway.acceptance import store as store
from services.gateway.acceptance.store import IdempotencyKey
from services.gateway.tables import api_keys, idempotency_keys
from services.gateway.tasks import store as ledger
from services.gateway.tasks.store import Acceptance
from tests.services.gateway_support import RunningGateway, envelope_headers, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.serving import serving


@dataclass(frozen=True)
class Call:
    """One request."""

    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})

    async def send(self, client: httpx.AsyncClient, key: str) -> httpx.Response:
        return await client.post(self.path, content=self.content, headers=self.headers | {"Idempotency-Key": key})


@dataclass(frozen=True)
class Pair:
    """What is sent first, and another request to the same route."""

    first: Call
    other: Call


def of(path: str, first: object, other: object) -> Callable[[RunningGateway], Awaitable[Pair]]:
    async def make(gateway: RunningGateway) -> Pair:
        return Pair(Call(path, orjson.dumps(first)), Call(path, orjson.dumps(other)))

    return make


async def attachment(gateway: RunningGateway) -> Pair:
    first = Call("/v1/attachments?filename=a.pdf", b"%PDF", {"Content-Type": "application/pdf"})
    return Pair(first, replace(first, headers={"Content-Type": "text/plain"}))


async def importing(gateway: RunningGateway) -> Pair:
    first = Call(
        "/v1/subscribers/import?lists=news&confirmed=true", b"email\nada@example.com\n", {"Content-Type": "text/csv"}
    )
    return Pair(first, replace(first, path="/v1/subscribers/import?lists=other&confirmed=true"))


async def event(gateway: RunningGateway) -> Pair:
    """Two events that differ in nothing but a header."""
    headers = {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-source": "/s", "ce-type": "a.b"}
    first = Call("/v1/events", b'{"a":1}', headers | {"ce-id": new_id()})
    return Pair(first, replace(first, headers=headers | {"ce-id": new_id()}))


async def scheduled_mail(gateway: RunningGateway) -> str:
    answer = await gateway.admin.post("/v1/mail", json=mail(send_at=LATER))
    return f"/v1/tasks/{answer.json()['id']}"


async def cancel(gateway: RunningGateway) -> Pair:
    return Pair(Call(f"{await scheduled_mail(gateway)}/cancel"), Call(f"{await scheduled_mail(gateway)}/cancel"))


async def retry(gateway: RunningGateway) -> Pair:
    paths = [await scheduled_mail(gateway) for _ in range(2)]
    for path in paths:
        assert (await gateway.admin.post(f"{path}/cancel")).status_code == 200
    return Pair(Call(f"{paths[0]}/retry"), Call(f"{paths[1]}/retry"))


async def dead_letters(gateway: RunningGateway, number: int) -> list[str]:
    """Return the ids of new dead letters."""
    headers = {"bellhop-reason": "rejected", "bellhop-error": "no", "bellhop-queue": "mail.normal"}
    event_ids = set()
    for _ in range(number):
        envelope = envelope_headers("mail.requested")
        event_ids.add(envelope["cloudEvents:id"])
        await gateway.vhost.publish("dead", "mail.normal", b"{}", headers=envelope | headers)

    async def found() -> list[str] | None:
        letters = (await gateway.admin.get("/v1/dead-letters?limit=500")).json()["dead_letters"]
        ids = [letter["id"] for letter in letters if letter["event_id"] in event_ids]
        return ids if len(ids) == number else None

    return await wait_until(found, 15, "the dead letters are stored")


async def replay(gateway: RunningGateway) -> Pair:
    (letter,) = await dead_letters(gateway, 1)
    path = f"/v1/dead-letters/{letter}/replay"
    return Pair(Call(path), Call(path, b'{"body": {"other": 1}}'))


async def replay_group(gateway: RunningGateway) -> Pair:
    await dead_letters(gateway, 2)
    path = "/v1/dead-letters/replay"
    return Pair(
        Call(path, b'{"queue": "mail.normal", "limit": 1}'), Call(path, b'{"queue": "mail.normal", "limit": 2}')
    )


async def broadcast_action(gateway: RunningGateway) -> Pair:
    await gateway.admin.post("/v1/subscribers", json={"email": "ada@example.com", "lists": ["news"], "confirmed": True})
    wish = {"list": "news", "subject": "s", "text": "t", "send_at": LATER}
    made = await gateway.admin.post("/v1/broadcasts", json=wish)
    assert made.status_code == 202, made.text
    path = f"/v1/broadcasts/{made.json()['id']}"
    return Pair(Call(f"{path}/pause"), Call(f"{path}/cancel"))


async def broadcast(gateway: RunningGateway) -> Pair:
    await gateway.admin.post("/v1/subscribers", json={"email": "ada@example.com", "lists": ["news"], "confirmed": True})
    wish = {"list": "news", "subject": "s", "text": "t", "send_at": LATER}
    return await of("/v1/broadcasts", wish, wish | {"subject": "other"})(gateway)


LATER = (now() + timedelta(hours=1)).isoformat()
PERSON = {"email": "bob@example.com", "lists": ["news"], "confirmed": True}
SCORE = {"board": "b", "player": "p", "score": 1}
NOTIFICATION = {"channels": ["news"], "title": "first"}

CASES: dict[str, Callable[[RunningGateway], Awaitable[Pair]]] = {
    "/v1/attachments": attachment,
    "/v1/broadcasts": broadcast,
    "/v1/broadcasts/{broadcast_id}/{action}": broadcast_action,
    "/v1/dead-letters/replay": replay_group,
    "/v1/dead-letters/{letter_id}/replay": replay,
    "/v1/events": event,
    "/v1/keys": of("/v1/keys", {"name": "shop", "scopes": ["mail:send"]}, {"name": "shop", "scopes": ["mail:read"]}),
    "/v1/leaderboards/{board}/ranks": of("/v1/leaderboards/b/ranks", {"players": ["a"]}, {"players": ["b"]}),
    "/v1/mail": of("/v1/mail", mail(), mail(subject="other")),
    "/v1/notifications": of("/v1/notifications", NOTIFICATION, NOTIFICATION | {"title": "other"}),
    "/v1/scores": of("/v1/scores", SCORE, SCORE | {"score": 2}),
    "/v1/stream-tokens": of(
        "/v1/stream-tokens", {"subject": "a", "channels": ["x"]}, {"subject": "b", "channels": ["x"]}
    ),
    "/v1/subscribers": of("/v1/subscribers", PERSON, PERSON | {"name": "Bob"}),
    "/v1/subscribers/import": importing,
    "/v1/suppressions": of(
        "/v1/suppressions", {"address": "c@example.com", "reason": "a"}, {"address": "c@example.com", "reason": "b"}
    ),
    "/v1/tasks/{task_id}/cancel": cancel,
    "/v1/tasks/{task_id}/retry": retry,
    "/v1/templates/{name}/preview": of("/v1/templates/welcome/preview", {"data": {}}, {"data": {"a": 1}}),
}


def answering_differently_each_time() -> FastAPI:
    """Return what stands in for the leaderboard and the mailer: no two of its answers are alike."""
    router = APIRouter(route_class=StrictRoute)
    numbers = count()

    @router.post("/v1/leaderboards/{board}/ranks")
    async def ranks(board: str) -> dict[str, Any]:
        age = {"as_of": None, "lag_seconds": None, "pending": next(numbers)}
        return {"board": board, "season": None, "players": 0, "entries": [], "missing": []} | age

    @router.post("/v1/templates/{name}/preview")
    async def preview(name: str) -> dict[str, Any]:
        return {"subject": f"{name} {next(numbers)}", "text": None, "html": None}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app("stand-in", "1", lifespan, [router])


@asynccontextmanager
async def two_gateways(vhost: Vhost, database_url: str) -> AsyncIterator[list[RunningGateway]]:
    with serving(answering_differently_each_time()) as port:
        address = f"http://127.0.0.1:{port}"
        settings = {"leaderboard_url": address, "mailer_url": address, "admin_key": "bh_abcdefgh_" + "s" * 43}
        async with (
            running_gateway(vhost, database_url, **settings) as one,
            running_gateway(vhost, database_url, **settings) as two,
        ):
            yield [one, two]


def seen(answer: httpx.Response) -> tuple[Any, ...]:
    return answer.status_code, answer.content, answer.headers.get("location"), answer.headers.get("content-type")


async def test_every_post_has_one_effect_and_one_answer_under_a_key(vhost: Vhost, database_url: str) -> None:
    """Generated from the route table: sent again, by the other gateway, with another body, and twice at once."""
    async with two_gateways(vhost, database_url) as (one, two):
        document = (await one.admin.get("/openapi.json")).json()
        posts = {path for path, operations in document["paths"].items() if "post" in operations}
        assert posts == set(CASES), "each POST needs a case here"

        async def check(path: str) -> list[str]:
            wrong = []
            pair, racing = await CASES[path](one), await CASES[path](one)
            key = f"{path}#1"
            first = await pair.first.send(one.admin, key)
            if first.status_code >= 300:
                wrong.append(f"{path}: {first.status_code} {first.text}")
            for gateway in (one, two):
                again = await pair.first.send(gateway.admin, key)
                if seen(again) != seen(first) or again.headers.get("idempotency-replay") != "true":
                    wrong.append(f"{path}, again: {again.status_code} {again.text} {dict(again.headers)}")
            other = await pair.other.send(two.admin, key)
            if (other.status_code, other.json()["title"]) != (422, "Idempotency key used before"):
                wrong.append(f"{path}, another request: {other.status_code} {other.text}")
            race = await asyncio.gather(*(racing.first.send(each.admin, f"{path}#2") for each in (one, two, one, two)))
            if len({seen(answer) for answer in race}) != 1 or race[0].status_code >= 300:
                wrong.append(f"{path}, at once: {[seen(answer) for answer in race]}")
            if sum("idempotency-replay" not in answer.headers for answer in race) != 1:
                wrong.append(f"{path}, at once: not exactly one was executed")
            return wrong

        wrong = [each for path in CASES for each in await check(path)]
        assert not wrong, "\n".join(wrong)


async def test_no_secret_lies_in_the_table_of_keys(vhost: Vhost, tmp_path: Path) -> None:
    """API keys and stream tokens are answered again, but are not stored to be."""
    url = f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    async with running_gateway(vhost, url) as gateway:
        for path in ("/v1/keys", "/v1/stream-tokens"):
            answer = await (await CASES[path](gateway)).first.send(gateway.admin, path)
            assert answer.status_code == 201
        database = Database(url)
        async with database.read() as connection:
            answers = list((await connection.execute(sa.select(idempotency_keys.c.answer))).scalars())
        await database.close()
    assert answers == [b"", b""]


async def test_a_key_that_was_revoked_stays_so(vhost: Vhost, tmp_path: Path) -> None:
    """The request that made it, sent again, is answered the same, but does not bring the key back."""
    url = f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    async with running_gateway(vhost, url) as gateway:
        call = (await CASES["/v1/keys"](gateway)).first
        made = (await call.send(gateway.admin, "k")).json()
        database = Database(url)
        async with database.write() as connection:
            await connection.execute(sa.delete(api_keys).where(api_keys.c.id == made["id"]))
        await database.close()
        again = await call.send(gateway.admin, "k")
        assert (again.status_code, again.json()) == (201, made)
        async with gateway.client(made["key"]) as client:
            assert (await client.get("/v1/templates")).status_code == 401


async def test_a_refused_request_may_come_again_under_its_key(vhost: Vhost, tmp_path: Path) -> None:
    """What was refused had no effect, so its key is free."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as gateway:
        task = await scheduled_mail(gateway)
        headers = {"Idempotency-Key": "k"}
        refused = await gateway.admin.post(f"{task}/retry", headers=headers)
        assert (await gateway.admin.post(f"{task}/cancel")).status_code == 200
        taken = await gateway.admin.post(f"{task}/retry", headers=headers)
    assert (refused.status_code, taken.status_code) == (409, 202)
    assert "idempotency-replay" not in taken.headers


async def test_a_key_used_again_after_it_was_forgotten_is_a_new_event(vhost: Vhost, tmp_path: Path) -> None:
    """Inboxes remember the ids of events for longer than the gateway remembers keys, so the id is a fresh one."""
    url = f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    async with running_gateway(vhost, url) as gateway:
        for path in ("/v1/scores", "/v1/notifications"):
            call = (await CASES[path](gateway)).first
            first = await call.send(gateway.admin, f"daily {path}")
            database = Database(url)
            async with database.write() as connection:
                await connection.execute(sa.delete(idempotency_keys))
            await database.close()
            second = await call.send(gateway.admin, f"daily {path}")
            assert (first.status_code, second.status_code) == (202, 202)
            assert first.json()["id"] != second.json()["id"]


async def test_a_reservation_whose_gateway_died_is_taken_over(
    vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its lease expires the answer is 409 with Retry-After; then the request is executed, by one of many."""
    url = f"sqlite+aiosqlite:///{tmp_path}/gateway.db"
    monkeypatch.setattr("services.gateway.acceptance.idempotent_route.WAIT_SECONDS", 0)
    async with running_gateway(vhost, url) as gateway:
        call = (await CASES["/v1/suppressions"](gateway)).first
        await call.send(gateway.admin, "k")
        database = Database(url)
        left = {"status": store.IN_PROGRESS, "answer": b"", "leased_until": time.time_ns() // 1_000_000 + 60_000}

        async def leave(**values: object) -> None:
            async with database.write() as connection:
                await connection.execute(sa.update(idempotency_keys).values(**left | values))

        await leave()
        busy = await call.send(gateway.admin, "k")
        await leave(leased_until=1)
        answers = await asyncio.gather(*(call.send(gateway.admin, "k") for _ in range(4)))
        await database.close()

    assert (busy.status_code, busy.headers["retry-after"]) == (409, "1")
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert sum(answer.status_code == 201 and "idempotency-replay" not in answer.headers for answer in answers) == 1


NO_EFFECT = {"/v1/leaderboards/{board}/ranks", "/v1/stream-tokens", "/v1/templates/{name}/preview"}
"""They write nothing, so they are executed again."""


COMMIT_THEIR_KEY = {"/v1/broadcasts", "/v1/events", "/v1/mail", "/v1/notifications", "/v1/scores"}
"""They have one commit for the effect and the answer, so there is no moment between the two."""
RESERVED = CASES.keys() - COMMIT_THEIR_KEY


@pytest.fixture
def breaking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The database goes away before or after the effect of a request with the header `Break`."""
    once = idempotent_route._once

    async def breaking_once(
        request: Request, key: IdempotencyKey, handler: Callable[[Request], Awaitable[Response]], stores_answer: bool
    ) -> Response:
        async def broken(again: Request) -> Response:
            when = again.headers.get("break")
            if when == "before":
                raise DatabaseUnavailable("the test says so")
            answer = await handler(again)
            if when == "after":
                raise DatabaseUnavailable("the test says so")
            return answer

        return await once(request, key, broken, stores_answer)

    monkeypatch.setattr(idempotent_route, "_once", breaking_once)


@pytest.mark.usefixtures("breaking")
async def test_a_lost_answer_never_becomes_a_second_effect(vhost: Vhost, database_url: str) -> None:
    """Generated from the route table: the answer is lost after the effect, and the request comes again to the other."""
    async with two_gateways(vhost, database_url) as (one, two):
        wrong = []
        for path in sorted(RESERVED):
            call = (await CASES[path](one)).first
            lost = await replace(call, headers=call.headers | {"Break": "after"}).send(one.admin, path)
            assert lost.status_code == 503, f"{path}: {lost.text}"
            again = await call.send(two.admin, path)
            told = again.status_code == 409 and again.json()["title"] == "Answer lost"
            replayed = again.status_code < 300 and "idempotency-replay" in again.headers
            if not (told or replayed or path in NO_EFFECT):
                wrong.append(f"{path}: {again.status_code} {again.text}")
        assert not wrong, "\n".join(wrong)
        keys = (await one.admin.get("/v1/keys")).json()["keys"]
        assert [key["name"] for key in keys if key["name"] == "shop"] == ["shop"]


@pytest.mark.usefixtures("breaking")
async def test_a_request_that_had_no_effect_may_come_again_immediately(vhost: Vhost, database_url: str) -> None:
    """The database was away before anything was written, so no lease has to end first."""
    async with two_gateways(vhost, database_url) as (one, two):
        for path in sorted(RESERVED):
            call = (await CASES[path](one)).first
            away = await replace(call, headers=call.headers | {"Break": "before"}).send(one.admin, path)
            again = await call.send(two.admin, path)
            assert (away.status_code, again.status_code < 300) == (503, True), f"{path}: {again.text}"
            assert "idempotency-replay" not in again.headers, path


async def test_of_two_gateways_that_store_the_same_keys_each_key_has_one_first(database_url: str) -> None:
    """Many at once, in opposite orders, each with another answer: nobody fails, and both see the same answers."""
    await migrate(database_url, "services.gateway")
    databases = [Database(database_url), Database(database_url)]

    def acceptances(side: int) -> list[Acceptance]:
        keys = [IdempotencyKey("shop", f"k{number}", "f") for number in range(40)]
        answers = [Acceptance(f'{{"id":"{side}-{key.key}"}}'.encode(), key=key) for key in keys]
        return answers if side else answers[::-1]

    async def accept(side: int) -> dict[bytes, bool]:
        results = await asyncio.gather(
            *(commits[side].write(ledger.accept, acceptance) for acceptance in acceptances(side))
        )
        return {result.answer: result.new for result in results}

    commits = [GroupCommit(database, max_items=7) for database in databases]
    one, two = await asyncio.gather(accept(0), accept(1))
    for part, database in zip(commits, databases, strict=True):
        await part.close()
        await database.close()
    assert one.keys() == two.keys()
    assert all(one[answer] is not two[answer] for answer in one)
