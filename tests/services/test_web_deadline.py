"""Every request gets an answer in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request

from bellhop.web import deadline
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from tests.support.serving import exchange, request, serving

router = APIRouter(route_class=StrictRoute)


@router.get("/hangs")
async def hangs() -> None:
    """Never end by oneself."""
    await asyncio.Event().wait()


@router.get("/stubborn")
async def stubborn() -> None:
    """Be slow even to be cancelled."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.sleep(0.5)
    raise ValueError("too late to matter")


@router.post("/hangs")
async def hangs_after_the_body(document: dict[str, int]) -> None:
    """Read the body, then hang."""
    await asyncio.Event().wait()


@router.get("/waits")
async def waits(request: Request) -> dict[str, bool]:
    """Wait on purpose."""
    deadline.extend(request.scope, 30)
    await asyncio.sleep(0.6)
    return {"done": True}


@router.get("/quick")
async def quick() -> dict[str, bool]:
    """Answer."""
    return {"done": True}


@asynccontextmanager
async def idle(app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "SECONDS", 0.3)


@pytest.mark.parametrize(
    ("method", "path", "body"), [("GET", "/hangs", b""), ("GET", "/stubborn", b""), ("POST", "/hangs", b'{"a": 1}')]
)
def test_what_hangs_is_answered(short: None, method: str, path: str, body: bytes) -> None:
    """503 as a problem document with Retry-After, once, and the server goes on."""
    with serving(create_app("test", "1", idle, [router])) as port:
        answer = exchange(port, request(method, path, body, content_type="application/json"))
        assert (answer.status, answer.document["title"]) == (503, "Service Unavailable")
        assert answer.headers["retry-after"] == "5"
        assert answer.headers["content-type"] == "application/problem+json"
        assert exchange(port, request("GET", "/quick")).status == 200


def test_a_route_that_waits_on_purpose_may(short: None) -> None:
    """A long poll has the time that its client asked for."""
    with serving(create_app("test", "1", idle, [router])) as port:
        assert exchange(port, request("GET", "/waits")).document == {"done": True}
