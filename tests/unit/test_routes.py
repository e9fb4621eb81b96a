"""What holds for every route of every face. A route that is added is tested here without being named."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.utils import get_flat_params
from starlette.responses import StreamingResponse

from bellhop.web.auth import Caller, Scope
from bellhop.web.head import HeadAsGet
from bellhop.web.strict_json import AnyQueryRoute, StrictRoute
from services.gateway import app as gateway
from services.gateway.settings import Settings as GatewaySettings
from services.leaderboard import app as leaderboard
from services.leaderboard.settings import LeaderboardSettings
from services.mailer import app as mailer
from services.mailer.settings import MailerSettings
from services.notifier import app as notifier
from services.notifier.settings import NotifierSettings

_COMMON: dict[str, Any] = {
    "amqp_url": "amqp://guest:guest@127.0.0.1:1/nowhere",
    "database_url": "sqlite+aiosqlite:///:memory:",
    "token_key": "k" * 40,
    "admin_key": "bh_admin",
    "mail_from": "news@example.com",
    "smtp_host": "127.0.0.1",
    "service_key": "s" * 40,
}


def _settings(model: type[Any]) -> Any:
    return model.model_validate({name: value for name, value in _COMMON.items() if name in model.model_fields})


APPS: dict[str, FastAPI] = {
    "gateway": gateway.build(_settings(GatewaySettings)),
    "leaderboard": leaderboard.build(_settings(LeaderboardSettings)),
    "mailer": mailer.build(_settings(MailerSettings)),
    "notifier": notifier.build(_settings(NotifierSettings)),
}
OPEN = {
    # Another service answers and checks the parameters itself.
    "/v1/leaderboards", "/v1/leaderboards/{board}", "/v1/leaderboards/{board}/players/{player}",
    "/v1/leaderboards/{board}/players/{player}/around", "/v1/leaderboards/{board}/ranks",
    "/v1/templates", "/v1/templates/{name}/preview",
    # Pages for people: mail programs and trackers add parameters to links.
    "/", "/console.js", "/subscribe", "/confirm", "/unsubscribe", "/live", "/live/live.css", "/live/live.js",
}  # fmt: skip


def routes(kind: type[StrictRoute] = StrictRoute) -> list[Any]:
    """Return the application, method and path of every route that is a `kind`."""
    return [
        pytest.param(app, method, route.path, id=f"{name} {method} {route.path}")
        for name, app in APPS.items()
        for route in app.router.routes
        if isinstance(route, kind)
        for method in sorted(route.methods)
    ]


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client that may do everything, of an application that is not started."""

    async def authenticate(key: str) -> Caller:
        return Caller(key, "tests", frozenset(Scope))

    app.state.authenticate = authenticate
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": "Bearer key", "Content-Type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://tests", headers=headers) as client:
        yield client


@pytest.mark.parametrize("name", APPS)
def test_every_route_is_strict(name: str) -> None:
    """All but FastAPI's own pages, and what ignores unknown parameters is listed above with its reason."""
    ours = [route for route in APPS[name].router.routes if getattr(route, "path", "") not in _FASTAPIS]

    assert all(isinstance(route, StrictRoute) for route in ours)
    assert {route.path for route in ours if isinstance(route, AnyQueryRoute) and name != "leaderboard"} <= OPEN


_FASTAPIS = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}


@pytest.mark.parametrize(("app", "method", "path"), routes())
async def test_an_unknown_query_parameter_is_refused(app: FastAPI, method: str, path: str) -> None:
    """A filter that is misspelled and ignored would return, or change, more than was asked for."""
    if path in OPEN and app is not APPS["leaderboard"] and app is not APPS["mailer"]:
        pytest.skip("takes any parameter")
    async with client_of(app) as client:
        answer = await client.request(method, path, params={"to": "ada"})

    assert answer.status_code == 422, answer.text
    assert "query:to" in [error["pointer"] for error in answer.json()["errors"]]


def _takes_cursor(route: Any) -> bool:
    return any(field.alias == "cursor" for field in get_flat_params(route.dependant))


@pytest.mark.parametrize(
    "path",
    [route.path for route in APPS["gateway"].router.routes if isinstance(route, StrictRoute) and _takes_cursor(route)],
)
async def test_a_cursor_that_no_list_gave_is_refused(path: str) -> None:
    """The first page in its place would look like the following one."""
    async with client_of(APPS["gateway"]) as client:
        answer = await client.get(path, params={"cursor": "zzz"})

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "query:cursor"


@pytest.mark.parametrize(("app", "method", "path"), routes())
async def test_nul_finds_nothing(app: FastAPI, method: str, path: str) -> None:
    """PostgreSQL cannot hold it, and would fail where it is looked for."""
    async with client_of(app) as client:
        in_path = None
        if "{" in path:
            in_path = await client.request(method, re.sub(r"\{[^}]*\}", "x%00", path))
        in_query = await client.request(method, f"{path}?cursor=%00&queue=a%00b")

    assert in_path is None or in_path.status_code in (404, 422), in_path.text
    assert in_query.status_code == 422, in_query.text


async def test_a_parameter_that_is_given_twice_is_refused() -> None:
    """One of the two would be ignored."""
    async with client_of(APPS["gateway"]) as client:
        answer = await client.get("/v1/tasks?limit=1&limit=2")

    assert answer.json()["errors"] == [{"pointer": "query:limit", "detail": "must be given only once"}]


@pytest.mark.parametrize(("app", "method", "path"), [each for each in routes() if each.values[1] == "GET"])
async def test_head_is_answered_like_get(app: FastAPI, method: str, path: str) -> None:
    """The same status and headers, and no body; uptime monitors and link checkers ask so."""
    # Refused, where the application would have to run for more.
    async with client_of(app) as client:
        query = "" if path.startswith(("/healthz", "/live", "/console")) else "?unknown=1&token=x"
        get, head = await client.get(path + query), await client.head(path + query)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")


async def test_head_does_not_wait_for_a_stream_without_end() -> None:
    """The head is all that is asked for."""

    async def forever() -> AsyncIterator[bytes]:
        while True:
            yield b"more"

    transport = httpx.ASGITransport(HeadAsGet(StreamingResponse(forever(), media_type="text/event-stream")))
    async with httpx.AsyncClient(transport=transport, base_url="http://tests") as client:
        answer = await client.head("/")

    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_refused_preflight_is_a_problem_document() -> None:
    """As every other error is."""
    transport = httpx.ASGITransport(APPS["notifier"])
    async with httpx.AsyncClient(transport=transport, base_url="http://tests") as client:
        asked = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "GET"}
        answer = await client.options("/v1/poll", headers=asked)

    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/poll"])
async def test_live_events_refuse_unknown_parameters(path: str) -> None:
    """A misspelled `last_event_id` would lose what happened in between."""
    transport = httpx.ASGITransport(APPS["notifier"])
    async with httpx.AsyncClient(transport=transport, base_url="http://tests") as client:
        answer = await client.get(f"{path}?lasteventid=1")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "query:lasteventid"
