"""Every route answers in time while the database hangs, and the gateway goes on afterwards."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.gateway.app import ROUTERS
from tests.services.gateway_support import mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.postgresql import find_binaries, frozen, private_server

SECONDS = 10.0


@pytest.fixture(scope="module")
def own_server() -> Iterator[dict[str, Any]]:
    """A PostgreSQL that may be frozen."""
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with private_server() as server:
        yield server


def calls() -> list[tuple[str, str]]:
    """Return method and path of every route."""
    return sorted(
        (method, re.sub(r"{[^}]*}", "1", route.path))
        for router in ROUTERS
        for route in router.routes
        for method in route.methods  # type: ignore[attr-defined]
    )


@pytest.mark.timeout(180)
async def test_a_frozen_database_is_503_in_time_on_every_route(vhost: Vhost, own_server: dict[str, Any]) -> None:
    """No silence and no 500, whatever the route; what was accepted before is sent afterwards."""
    url = f"{own_server['url']}/postgres"
    async with running_gateway(vhost, url) as gateway:
        assert (await gateway.admin.post("/v1/mail", json=mail())).status_code == 202

        async def ask(method: str, path: str) -> tuple[int, float, str]:
            body = {"json": mail() if path == "/v1/mail" else {}} if method in ("POST", "PUT", "PATCH") else {}
            began = asyncio.get_running_loop().time()
            answer = await gateway.admin.request(method, path, **body)
            return answer.status_code, asyncio.get_running_loop().time() - began, answer.headers.get("retry-after", "")

        with frozen(own_server["pid"]):
            asked = calls()
            answers = dict(zip(asked, await asyncio.gather(*(ask(*call) for call in asked)), strict=True))
            ready = await asyncio.wait_for(gateway.admin.get("/readyz"), 3)
        late = {call: answer for call, answer in answers.items() if answer[1] > SECONDS}
        assert not late
        wrong = {call: answer for call, answer in answers.items() if answer[0] >= 500 and answer[0] not in (502, 503)}
        assert not wrong
        assert answers["POST", "/v1/mail"][0] == answers["GET", "/v1/tasks"][0] == 503
        assert all(answer[2] for answer in answers.values() if answer[0] == 503)
        assert (ready.status_code, ready.json()["checks"]["database"] == "ok") == (503, False)

        async def well() -> bool:
            return (await gateway.admin.post("/v1/mail", json=mail())).status_code == 202

        await wait_until(well, 20)


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
