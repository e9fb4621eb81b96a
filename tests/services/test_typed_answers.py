"""Every operation of every face answers what its document declares, with no field more and no type coerced.

The check stands around all routes in all tests (`tests.support.answers`); here each operation is asked at least once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from bellhop.contracts.base import new_id
from bellhop.contracts.outcomes import State
from bellhop.sql.migrations import migrate
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from bellhop.web.tokens import service_key
from services.leaderboard.app import build as build_leaderboard
from services.leaderboard.settings import LeaderboardSettings
from services.mailer.app import build as build_mailer
from tests.services.gateway_support import RunningGateway, mail, running_gateway
from tests.services.mailer_support import mailer_settings
from tests.services.notifier_support import notification, served, token
from tests.services.test_gateway_idempotency import CASES, dead_letters, of
from tests.services.test_mail_attachments import is_ready
from tests.support import Vhost, answers, wait_until
from tests.support.serving import exchange, request, serving

PLAYER = "/v1/leaderboards/b/players/p"
ADDRESS = "c@example.com"


@asynccontextmanager
async def running_system(vhost: Vhost, tmp_path: Path) -> AsyncIterator[tuple[RunningGateway, dict[str, FastAPI]]]:
    """Run a gateway, a leaderboard and a mailer; the mailer has no relay."""
    database = f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db"
    await migrate(database, "services.leaderboard")
    leaderboard = build_leaderboard(
        LeaderboardSettings(amqp_url=vhost.amqp_url, database_url=database, token_key="k" * 40, pull_seconds=0.1)
    )
    mailer = build_mailer(
        mailer_settings(
            1,
            amqp_url=vhost.amqp_url,
            database_url=f"sqlite+aiosqlite:///{tmp_path}/mailer.db",
            service_key=service_key("k" * 40, "mailer"),
        )
    )
    with serving(leaderboard) as leaderboard_port, serving(mailer) as mailer_port:
        # Two migrations in one process would disturb each other.
        await wait_until(partial(is_ready, leaderboard_port), 20, "the leaderboard is ready")
        await wait_until(partial(is_ready, mailer_port), 20, "the mailer is ready")
        urls = {
            "leaderboard_url": f"http://127.0.0.1:{leaderboard_port}",
            "mailer_url": f"http://127.0.0.1:{mailer_port}",
        }
        async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db", **urls) as gateway:
            yield gateway, {"leaderboard": leaderboard, "mailer": mailer}


async def ask_everything(gateway: RunningGateway) -> None:
    """Get a successful answer of every operation of a gateway."""

    async def ask(method: str, path: str, **sent: Any) -> Any:
        async def answered() -> httpx.Response | None:
            answer = await gateway.admin.request(method, path, **sent)
            assert answer.status_code != 500, f"{method} {path}: {answer.text}"
            return answer if answer.is_success else None

        answer = await wait_until(answered, 20, f"{method} {path} succeeds")
        return answer.json() if answer.content else None

    await ask("PUT", "/v1/leaderboards/b", json={})
    preview = {"/v1/templates/{name}/preview": of("/v1/templates/welcome/preview", {"data": {"name": "Ada"}}, {})}
    for path, case in (CASES | preview).items():
        answer = await (await case(gateway)).first.send(gateway.admin, new_id())
        assert answer.is_success, f"{path}: {answer.text}"
    await gateway.report(
        new_id(), State.SENT, event_id="e-1", event_source="/shop", event_type="order.placed", to=ADDRESS, owner="admin"
    )
    await ask("GET", "/v1/events?source=/shop&id=e-1")
    await ask("GET", "/v1/events/e-1")
    task = (await ask("POST", "/v1/mail", json=mail()))["id"]
    await gateway.report(task, State.RETRYING, code=451, reply="later")
    broadcast = (await ask("GET", "/v1/broadcasts"))["broadcasts"][0]["id"]
    (letter,) = await dead_letters(gateway, 1)
    key = (await ask("GET", "/v1/keys"))["keys"][-1]["id"]
    for path in (
        "/healthz", "/readyz", "/v1/tasks", f"/v1/tasks/{task}", f"/v1/broadcasts/{broadcast}",
        f"/v1/broadcasts/{broadcast}/tasks", "/v1/subscribers", "/v1/subscribers/ada@example.com", "/v1/lists",
        "/v1/suppressions", f"/v1/suppressions/{ADDRESS}", "/v1/dead-letters", f"/v1/dead-letters/{letter}",
        "/v1/system", "/v1/templates", PLAYER, f"{PLAYER}/around", "/v1/leaderboards/b", "/v1/leaderboards",
    ):  # fmt: skip
        await ask("GET", path)
    await ask("PUT", "/v1/leaderboards/new", json={})
    for path in (
        PLAYER, "/v1/leaderboards/new", f"/v1/dead-letters/{letter}", f"/v1/suppressions/{ADDRESS}",
        "/v1/subscribers/ada@example.com", f"/v1/keys/{key}",
    ):  # fmt: skip
        await ask("DELETE", path)


def typed(document: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the operations that answer JSON, as method and path."""
    return {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if any("application/json" in each.get("content", {}) for each in operation["responses"].values())
    }


def without_convertors(operations: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return operations with their paths as OpenAPI has them."""
    return {(method, path.replace(":path}", "}")) for method, path in operations}


async def test_every_operation_answers_what_it_declares(vhost: Vhost, tmp_path: Path) -> None:
    """Of the gateway, and of the leaderboard and the mailer, which it forwards to."""
    answers.validated.clear()
    async with running_system(vhost, tmp_path) as (gateway, others):
        await ask_everything(gateway)
        document = (await gateway.admin.get("/openapi.json")).json()
    expected = typed(document).union(*(typed(app.openapi()) for app in others.values()))

    assert expected - without_convertors(answers.validated) == set()


async def test_a_poll_answers_what_it_declares() -> None:
    """With an event in it; a poll is written by hand."""
    answers.validated.clear()
    async with served() as notifier, httpx.AsyncClient(base_url=notifier.url, trust_env=False) as client:
        start = (await client.get("/v1/poll", params={"token": token(), "wait": 0})).json()["next"]
        await notifier.publish(notification(0))
        answer = (await client.get("/v1/poll", params={"token": token(), "after": start})).json()

    assert [event["type"] for event in answer["events"]] == ["notification.raised"]
    assert ("GET", "/v1/poll") in answers.validated


class Declared(TypedDict):
    """What a route promises."""

    number: int


@pytest.mark.parametrize("answer", [{"number": "1"}, {"number": 1, "more": 2}, {}])
def test_an_answer_that_does_not_fit_is_an_error(answer: dict[str, Any]) -> None:
    """So that no test passes with it."""
    router = APIRouter(route_class=StrictRoute)

    @router.get("/", responses={200: {"model": Declared}})
    async def wrong() -> Any:
        return JSONResponse(answer)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield

    with serving(create_app("wrong", "1", lifespan, [router])) as port:
        assert exchange(port, request("GET", "/")).status == 500
