"""What holds for every route of every face. A route that is added is tested here without being named."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.utils import get_flat_params
from starlette.responses import StreamingResponse

from bellhop.web import health, tokens
from bellhop.web.auth import Caller, Scope
from bellhop.web.head import HeadAsGet
from bellhop.web.rate_limit import Buckets, Rate
from bellhop.web.request_limits import Limits
from bellhop.web.server import create_app
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


_GATEWAY = _settings(GatewaySettings)
APPS: dict[str, FastAPI] = {
    "gateway": gateway.build(_GATEWAY),
    "leaderboard": leaderboard.build(_settings(LeaderboardSettings)),
    "mailer": mailer.build(_settings(MailerSettings)),
    "notifier": notifier.build(_settings(NotifierSettings)),
}
MAILER_ONLY = {"/v1/attachments/{attachment_id}/content": "attachments", "/v1/suppressions/among": "suppressions"}
"""And the audiences of the tokens that they take."""
PUBLIC = {
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
async def client_of(app: FastAPI, path: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Return a client that may do everything, on `path` at least, of an application that is not started."""

    async def authenticate(key: str) -> Caller:
        return Caller(key, "tests", frozenset(Scope))

    app.state.authenticate = authenticate
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    app.state.gateway = SimpleNamespace(settings=_GATEWAY)
    key = _GATEWAY.mailer_key if path in MAILER_ONLY else _COMMON["token_key"]
    token = tokens.mint(key, "tests", 600, MAILER_ONLY.get(path, "stream"), channels=["news"])
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://tests", headers=headers) as client:
        yield client


def anonymous_client_of(app: FastAPI) -> httpx.AsyncClient:
    """Return a client without a key."""

    async def authenticate(_key: str) -> None:
        return None

    app.state.authenticate = authenticate
    app.state.gateway = SimpleNamespace(settings=_GATEWAY)  # what checks the mailer's tokens
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://tests")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the policies by which requests were counted since."""
    policies: list[str] = []
    take = Buckets.take

    def noting(buckets: Buckets, name: str, now: float) -> float:
        policies.append(buckets.policy)
        return take(buckets, name, now)

    monkeypatch.setattr(Buckets, "take", noting)
    return policies


@pytest.mark.parametrize("name", APPS)
def test_every_route_is_strict(name: str) -> None:
    """All but FastAPI's own pages, and only pages for people ignore unknown parameters."""
    ours = [route for route in APPS[name].router.routes if getattr(route, "path", "") not in _FASTAPIS]

    assert all(isinstance(route, StrictRoute) for route in ours)
    assert {route.path for route in ours if isinstance(route, AnyQueryRoute)} <= PUBLIC


_FASTAPIS = {"/openapi.json", "/docs", "/docs/oauth2-redirect"}


@pytest.mark.parametrize(("app", "method", "path"), routes())
async def test_an_unknown_query_parameter_is_refused(app: FastAPI, method: str, path: str) -> None:
    """A filter that is misspelled and ignored would return, or change, more than was asked for."""
    if path in PUBLIC:
        pytest.skip("takes any parameter: mail programs and trackers add some to links")
    async with client_of(app, path) as client:
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
    async with client_of(app, path) as client:
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
    async with client_of(APPS["notifier"]) as client:
        answer = await client.get(f"{path}?lasteventid=1")

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "query:lasteventid"


_BAD = "wait=abc&to=ada&wait=0"


@pytest.mark.parametrize(
    ("app", "method", "path"),
    [*routes(), pytest.param(APPS["notifier"], "GET", "/v1/stream", id="notifier GET /v1/stream")],
)
async def test_every_bad_request_is_counted_and_authentication_comes_first(
    app: FastAPI, method: str, path: str, counted: list[str]
) -> None:
    """A request that no limit counts could be sent without end; and who has no key learns nothing but that."""
    if path in health.PATHS:
        pytest.skip("health checks are not counted")
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Authorization": "Basic eDp5"}):
        counted.clear()
        async with anonymous_client_of(app) as client:
            answer = await client.request(method, f"{path}?{_BAD}", headers=headers, content=b"{")

        assert counted == ["address"]
        if path not in PUBLIC:
            assert answer.status_code == 401, answer.text


@pytest.mark.parametrize("name", APPS)
@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/no/such/path", "tests", 404),
        ("GET", "/x%00", "tests", 404),
        ("PATCH", "/v1/system", "tests", None),
        ("GET", "/", "other.example", None),
    ],
)
async def test_what_no_route_takes_is_counted(
    name: str, method: str, path: str, host: str, status: int | None, counted: list[str]
) -> None:
    """By the address, whether or not it shows a key that nothing has checked."""
    for headers in ({}, {"Authorization": "Bearer nonsense"}):
        counted.clear()
        async with anonymous_client_of(APPS[name]) as client:
            answer = await client.request(method, path, headers={"Host": host, **headers})

        assert counted == ["address"]
        assert status is None or answer.status_code == status


async def test_a_head_with_a_key_is_counted_once_by_the_key(counted: list[str]) -> None:
    """And not by the address of all who sit behind it."""
    async with client_of(APPS["gateway"]) as client:
        await client.head("/v1/tasks?to=ada")

    assert counted == ["key"]


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/poll"])
@pytest.mark.parametrize("query", ["wait=abc", "lasteventid=1", "channels=other"])
async def test_bad_requests_with_a_valid_token_are_counted_by_its_subject(
    path: str, query: str, counted: list[str]
) -> None:
    """A page with a mistake in it must not lock out those who sit behind the same address."""
    async with client_of(APPS["notifier"]) as client:
        answer = await client.get(f"{path}?{query}")

    assert answer.status_code in (403, 422)
    assert counted == ["subject"]


async def test_an_unchecked_key_saves_nobody_from_the_limit() -> None:
    """429 in place of the answer."""
    app = create_app("tests", "0", no_lifespan, [], limits=Limits(address_rate=Rate(0.001, 1)))
    async with anonymous_client_of(app) as client:
        answers = [await client.get("/nothing", headers={"Authorization": "Bearer nonsense"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [404, 429]
    assert answers[1].json()["violated-policies"] == ["address"]
    assert answers[1].headers["ratelimit"]


@asynccontextmanager
async def no_lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
