"""Health checks and metrics of a service. The three routes need no key and return nothing secret."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, NotRequired, TypeVar

import orjson
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from bellhop.errors import Unavailable
from bellhop.web.strict_json import StrictRoute

PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
Ready = Callable[[], Awaitable[dict[str, str]]]
"""Returns name -> "ok", or a sentence that names what this service waits for."""

T = TypeVar("T")

_TIMEOUT = 2.0
_CHECK_SECONDS = 1.5

router = APIRouter(route_class=StrictRoute, tags=["health"])


class HealthAnswer(TypedDict):
    """The process answers."""

    status: str
    system: NotRequired[str]


class ReadinessAnswer(TypedDict):
    """Whether a service can do its work."""

    status: str
    checks: Annotated[dict[str, str], Field(description="`ok`, or what is missing, by name")]


@router.get(
    "/healthz",
    summary="Whether the process answers",
    responses={200: {"model": HealthAnswer}, 503: {"model": HealthAnswer, "description": "shutting down"}},
)
async def healthz(request: Request) -> Response:
    """Return whether this process runs; its dependencies are not checked.

    A healthy service is therefore not restarted because its broker is unavailable. 503: the process is shutting down,
    and a load balancer must choose another one. A gateway also returns the id of its system, so that no client sends
    it the key of another system.
    """
    if request.app.state.draining:
        return Response(orjson.dumps({"status": "shutting down"}), 503, {"Retry-After": "1"}, "application/json")
    system: str | None = getattr(request.app.state, "system", None)
    return Response(
        orjson.dumps({"status": "ok"} | ({"system": system} if system else {})), media_type="application/json"
    )


@router.get(
    "/readyz",
    summary="Whether the service can do its work",
    responses={
        200: {"model": ReadinessAnswer},
        503: {"model": ReadinessAnswer, "description": "not now; the checks say what is missing"},
    },
)
async def readyz(request: Request) -> Response:
    """Return whether this service can do its work: 200, or 503 with the checks that failed."""
    state = request.app.state
    if state.draining:
        checks = {"service": "is shutting down"}
    else:
        checks = await _ask(state.ready) | {"background": state.background.failure or "ok"}
    ready = all(answer == "ok" for answer in checks.values())
    document = {"status": "ok" if ready else "not ready", "checks": checks}
    headers = {} if ready else {"Retry-After": "1"}
    return Response(orjson.dumps(document), 200 if ready else 503, headers, "application/json")


async def _ask(ready: Ready) -> dict[str, str]:
    asking = await _within(_TIMEOUT, ready())
    return asking.result() if asking.done() else {"checks": f"did not answer within {_TIMEOUT:g} seconds"}


async def check(ask: Callable[[], Awaitable[None]]) -> str:
    """Return "ok", or why `ask` failed with `Unavailable`, or that it took too long; for `app.state.ready`."""
    asking = await _within(_CHECK_SECONDS, ask())
    if not asking.done():
        return f"did not answer within {_CHECK_SECONDS:g} seconds"
    try:
        asking.result()
    except Unavailable as error:
        return str(error)
    return "ok"


async def _within(seconds: float, work: Awaitable[T]) -> "asyncio.Future[T]":
    # Not `asyncio.timeout`, which waits until the cancelled work has ended: a driver may take long for that.
    future = asyncio.ensure_future(work)
    await asyncio.wait({future}, timeout=seconds)
    if not future.done():
        future.add_done_callback(lambda late: late.cancelled() or late.exception())  # so that asyncio does not warn
        asyncio.get_running_loop().call_soon(future.cancel)
    return future


@router.get("/metrics", include_in_schema=False)
async def metrics() -> Response:
    """Return the metrics of this process in Prometheus' text format."""
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
