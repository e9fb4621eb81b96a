"""Every route of every service answers in time while something hangs, and all go on afterwards."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from fastapi import APIRouter, FastAPI
from sqlalchemy.engine import make_url
from starlette.routing import Route

from bellhop.sql.migrations import migrate
from bellhop.web import tokens
from services.gateway.app import ROUTERS
from services.leaderboard import routes as leaderboard_routes
from services.leaderboard.app import build as leaderboard_app
from services.leaderboard.settings import LeaderboardSettings
from services.mailer import routes as mailer_routes
from services.mailer.app import build as mailer_app
from services.notifier import routes as notifier_routes
from services.notifier.app import build as notifier_app
from services.notifier.settings import NotifierSettings
from tests.faults.proxy import cable_to
from tests.services.gateway_support import mail, running_gateway
from tests.services.mailer_support import mailer_settings
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.postgresql import find_binaries, frozen, private_server
from tests.support.serving import serving
from tests.support.smtp import SmtpServer

SECONDS = 10.0
READY_SECONDS = 3.0
KEY = "k" * 40


@pytest.fixture(scope="module")
def own_server() -> Iterator[dict[str, Any]]:
    """A PostgreSQL that may be frozen."""
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with private_server() as server:
        yield server


@dataclass
class Face:
    """A service's HTTP, and what was asked of it while something hung."""

    name: str
    http: httpx.AsyncClient
    routers: Sequence[APIRouter]
    answers: dict[tuple[str, str], httpx.Response] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    async def ask_all(self) -> None:
        """Ask every route, all at the same time, and /readyz a little later, when they fill the pools."""
        calls = {
            (method, re.sub(r"{[^}]*}", "1", route.path))
            for router in self.routers
            for route in router.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        }
        await asyncio.gather(*(self._ask(*call) for call in sorted(calls)), self._ask("GET", "/readyz", delay=0.5))

    async def _ask(self, method: str, path: str, delay: float = 0.0) -> None:
        await asyncio.sleep(delay)
        body = {"json": BODIES.get(path, {})} if method in ("POST", "PUT", "PATCH") else {}
        began = asyncio.get_running_loop().time()
        self.answers[method, path] = await self.http.request(method, path, **body)
        self.seconds[method, path] = asyncio.get_running_loop().time() - began

    def check(self, *unavailable: tuple[str, str]) -> None:
        """Every answer was in time, `unavailable` and /readyz were 503, and nothing was another server error."""
        assert {call: took for call, took in self.seconds.items() if took > SECONDS} == {}
        statuses = {call: answer.status_code for call, answer in self.answers.items()}
        assert {call: status for call, status in statuses.items() if status in (500, 504)} == {}
        assert {call: statuses[call] for call in unavailable} == dict.fromkeys(unavailable, 503)
        assert all(answer.headers.get("retry-after") for answer in self.answers.values() if answer.status_code == 503)
        assert (statuses["GET", "/readyz"], self.seconds["GET", "/readyz"] < READY_SECONDS) == (503, True), self.name

    async def well(self) -> bool:
        """Say whether it is ready."""
        return (await self.http.get("/readyz")).status_code == 200


BODIES: dict[str, Any] = {
    "/v1/mail": mail(),
    "/v1/scores": [{"board": "b", "player": "p", "score": 1}],
    "/v1/notifications": {"channels": ["news"], "title": "t"},
    "/v1/subscribers": {"email": "bob@example.com", "lists": ["news"]},
    "/v1/suppressions": {"address": "eve@example.com", "reason": "asked"},
    "/v1/leaderboards/1": {"operator": "sum"},
    "/v1/leaderboards/1/ranks": {"players": ["p"]},
}
"""What is accepted where; the other routes refuse what they are sent."""


@asynccontextmanager
async def served(name: str, app: FastAPI, routers: Sequence[APIRouter], token: str) -> AsyncIterator[Face]:
    with serving(app) as port:
        headers = {"Authorization": f"Bearer {token}"}
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=30) as http:
            face = Face(name, http, routers)
            await wait_until(face.well, 20, f"the {name} is ready")
            yield face


@asynccontextmanager
async def leaderboard(amqp_url: str, database_url: str) -> AsyncIterator[Face]:
    settings = LeaderboardSettings(amqp_url=amqp_url, database_url=database_url, token_key=KEY, pull_seconds=0.1)
    token = tokens.mint(KEY, "gateway", 600, "leaderboard", scopes=["leaderboards:read", "leaderboards:write"])
    async with served("leaderboard", leaderboard_app(settings), [leaderboard_routes.router], token) as face:
        yield face


@asynccontextmanager
async def mailer(amqp_url: str, database_url: str, smtp_port: int) -> AsyncIterator[Face]:
    settings = mailer_settings(smtp_port, amqp_url=amqp_url, database_url=database_url, service_key=KEY)
    token = tokens.mint(KEY, "gateway", 600, "mailer", scopes=["mail:send"])
    async with served("mailer", mailer_app(settings), [mailer_routes.router], token) as face:
        yield face


@asynccontextmanager
async def notifier(amqp_url: str) -> AsyncIterator[Face]:
    token = tokens.mint(KEY, "ann", 600, "stream", channels=["news"])
    app = notifier_app(NotifierSettings(amqp_url=amqp_url, token_key=KEY))
    async with served("notifier", app, [notifier_routes.router, notifier_routes.pages], token) as face:
        yield face


@pytest.mark.timeout(180)
async def test_a_frozen_database_is_503_in_time_on_every_route(
    vhost: Vhost, own_server: dict[str, Any], smtp_server: SmtpServer
) -> None:
    """No silence and no 500, whatever the service and the route; what was accepted before is sent afterwards."""
    url = f"{own_server['url']}/postgres"
    async with (
        running_gateway(vhost, url) as running,
        leaderboard(vhost.amqp_url, url) as boards,
        mailer(vhost.amqp_url, url, smtp_server.port) as mails,
    ):
        gateway = Face("gateway", running.admin, ROUTERS)
        assert (await running.admin.post("/v1/mail", json=mail())).status_code == 202
        faces = (gateway, boards, mails)
        with frozen(own_server["pid"]):
            await asyncio.gather(*(face.ask_all() for face in faces))
        gateway.check(("POST", "/v1/mail"), ("GET", "/v1/tasks"))
        boards.check(("PUT", "/v1/leaderboards/1"), ("DELETE", "/v1/leaderboards/1"))
        mails.check()
        assert mails.answers["GET", "/v1/templates"].status_code == 200, "it needs no database"
        for face in faces:
            await wait_until(face.well, 30, f"the {face.name} is ready again")
        assert (await running.admin.post("/v1/mail", json=mail())).status_code == 202
        await wait_until(lambda: len(smtp_server.mails) == 2, 30, "both mails are out")


@pytest.mark.timeout(180)
async def test_a_database_whose_packets_vanish_is_503_in_time(vhost: Vhost, own_server: dict[str, Any]) -> None:
    """Neither an answer nor a reset, for open connections and for new ones; and nothing between us takes a proxy."""
    address = make_url(f"{own_server['url']}/postgres")
    with cable_to(address.port or 0) as cable:
        url = address.set(port=cable.port).render_as_string(hide_password=False)
        async with running_gateway(vhost, url) as running:
            gateway = Face("gateway", running.admin, ROUTERS)
            cable.cut()
            await gateway.ask_all()
            gateway.check(("POST", "/v1/mail"), ("GET", "/v1/tasks"))
            cable.mend()
            await wait_until(gateway.well, 30, "the gateway is ready again")
            assert (await running.admin.post("/v1/mail", json=mail())).status_code == 202


@pytest.mark.timeout(180)
async def test_a_silent_broker_is_503_in_time_on_every_route(
    vhost: Vhost, tmp_path: Path, smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its management API. A mail is accepted all the same, and goes out afterwards. HTTP_PROXY means nothing."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    broker = vhost.broker
    with cable_to(broker.amqp_port, broker.host) as amqp, cable_to(broker.management_port, broker.host) as management:
        through = replace(broker, host="127.0.0.1", amqp_port=amqp.port, management_port=management.port)
        amqp_url, database_url = through.amqp_url(vhost.name), f"sqlite+aiosqlite:///{tmp_path}/test.db"
        for name in ("mailer", "leaderboard"):
            await migrate(database_url, f"services.{name}")
        async with (
            running_gateway(vhost, database_url, amqp_url=amqp_url, management_url=through.management_url) as running,
            leaderboard(amqp_url, database_url) as boards,
            mailer(amqp_url, database_url, smtp_server.port) as mails,
            notifier(amqp_url) as live,
        ):
            gateway = Face("gateway", running.admin, ROUTERS)
            faces = (gateway, boards, mails, live)
            # The first publish that is not confirmed in time is what tells that the broker is silent.
            assert "queues" in (await running.admin.get("/v1/system")).json()["broker"]
            for one in (amqp, management):
                one.cut()
            await asyncio.gather(*(face.ask_all() for face in faces))
            for face in faces:
                assert {call: took for call, took in face.seconds.items() if took > SECONDS} == {}
                statuses = {call: answer.status_code for call, answer in face.answers.items()}
                assert {call: status for call, status in statuses.items() if status in (500, 504)} == {}
                assert face.seconds["GET", "/readyz"] < READY_SECONDS
            assert gateway.answers["POST", "/v1/mail"].status_code == 202
            refused = [answer for face in faces for answer in face.answers.values() if answer.status_code == 503]
            assert refused, "scores are accepted by the broker only"
            assert all(answer.headers.get("retry-after") for answer in refused)
            for one in (amqp, management):
                one.mend()
            for face in faces:
                await wait_until(face.well, 40, f"the {face.name} is ready again")
            await wait_until(lambda: smtp_server.to("ada@example.com"), 40, "the mail is out")


@pytest.mark.timeout(120)
async def test_a_locked_table_ends_no_background_loop(vhost: Vhost, own_server: dict[str, Any]) -> None:
    """While another session holds a lock, requests are 503; afterwards what was scheduled goes out."""
    async with running_gateway(vhost, f"{own_server['url']}/postgres") as gateway:
        locker = await asyncpg.connect(own_server["url"].replace("+asyncpg", "") + "/postgres")
        async with locker.transaction():
            await locker.execute("LOCK TABLE tasks; LOCK TABLE outbox")
            answers = await asyncio.gather(*(gateway.admin.get("/v1/tasks") for _ in range(40)))
        await locker.close()
        assert {answer.status_code for answer in answers} == {503}
        later = await gateway.admin.post("/v1/mail", json=mail(send_at="2026-01-01T00:00:00Z"))
        task = later.json()["id"]

        async def out() -> bool:
            return (await gateway.admin.get(f"/v1/tasks/{task}")).json()["state"] == "queued"

        await wait_until(out, 20)

        async def ready() -> httpx.Response | None:
            answer = await gateway.admin.get("/readyz")
            return answer if answer.status_code == 200 else None

        await wait_until(ready, 20)


async def test_the_rate_limit_is_obeyed(vhost: Vhost, tmp_path: Path) -> None:
    """BELLHOP_RATE_LIMIT is requests a second for a key, and twice as many at once."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/test.db", rate_limit=5) as gateway:
        answers = await asyncio.gather(*(gateway.admin.get("/v1/keys") for _ in range(30)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
