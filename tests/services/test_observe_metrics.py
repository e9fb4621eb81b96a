"""The metrics that every service has."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from prometheus_client import REGISTRY

from bellhop.observe.metrics import watch_loop
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from tests.support import wait_until
from tests.support.serving import exchange, request, serving


@asynccontextmanager
async def idle(app: FastAPI) -> AsyncIterator[None]:
    """Nothing to start."""
    yield


def test_requests_are_counted_by_the_template_of_their_route() -> None:
    """Many paths of one route are one series, and unknown paths are one together."""
    router = APIRouter(prefix="/metered", route_class=StrictRoute)

    @router.get("/{number}")
    async def thing(number: int) -> int:
        return number

    with serving(create_app("metered-service", "1", idle, [router])) as port:
        for path in ("/metered/1", "/metered/2", "/metered/x", "/metered/a/b", "/metered/c/d"):
            exchange(port, request("GET", path))
        text = exchange(port, request("GET", "/metrics")).body.decode()
    counts = dict(re.findall(r"^bellhop_http_request_seconds_count\{(.*)\} (\S+)$", text, re.MULTILINE))
    assert counts['method="GET",route="/metered/{number}",status="200"'] == "2.0"
    assert counts['method="GET",route="/metered/{number}",status="422"'] == "1.0"
    assert float(counts['method="GET",route="unmatched",status="404"']) >= 2
    assert "/metered/1" not in text
    assert re.search(r'bellhop_build_info\{python="3\.[0-9.]+",service="metered-service",version="[0-9.]+"\} 1', text)


async def test_the_lag_of_the_event_loop_is_measured() -> None:
    """The watch observes again and again, until it is cancelled."""

    def observed() -> float:
        return REGISTRY.get_sample_value("bellhop_event_loop_lag_seconds_count") or 0

    before = observed()
    watch = asyncio.create_task(watch_loop())
    await wait_until(lambda: observed() >= before + 2, timeout=10)
    watch.cancel()
