"""The life of a server: documents, health, start and stop."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from starlette.responses import StreamingResponse

from bellhop.contracts.scores import Score
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import Problem
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from tests.support.serving import Answer, connect, exchange, read_answer, request, serving

router = APIRouter(prefix="/v1", route_class=StrictRoute)


@router.post("/scores", status_code=202)
async def submit(score: Score, caller: Annotated[Caller, Depends(require(Scope.SCORES_WRITE))]) -> None:
    """Take a score."""


@asynccontextmanager
async def idle(app: FastAPI) -> AsyncIterator[None]:
    """Nothing to start."""
    yield


def test_the_documents_show_models_keys_and_problems() -> None:
    """The body's model, the key that is needed, and the one form of all errors stand in the OpenAPI document."""
    with serving(create_app("test", "1", idle, [router])) as port:
        document = exchange(port, request("GET", "/openapi.json")).document
        assert exchange(port, request("GET", "/docs")).status == 200
    operation = document["paths"]["/v1/scores"]["post"]
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Score"}
    assert operation["security"] == [{"key": []}]
    assert set(operation["responses"]) == {"202", "default"}
    assert "application/problem+json" in operation["responses"]["default"]["content"]
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_dependencies_of_an_including_router_are_obeyed() -> None:
    """What a router adds to the routes that it includes also guards them."""
    inner = APIRouter(route_class=StrictRoute)
    inner.get("/inner")(lambda: {})
    inner.get("/direct")(submit_nothing)
    outer = APIRouter(dependencies=[Depends(require(Scope.ADMIN))])
    outer.include_router(inner, prefix="/outer")
    with serving(create_app("test", "1", idle, [outer])) as port:
        assert exchange(port, request("GET", "/outer/inner")).status == 401
        assert exchange(port, request("GET", "/outer/direct")).status == 401


async def submit_nothing() -> dict[str, str]:
    """An endpoint without parameters."""
    return {}


def test_health_is_open_and_readiness_tells_what_is_missing() -> None:
    """/healthz needs nothing; /readyz is 503 while a check fails or hangs, and names it."""
    checks: dict[str, str] = {"broker": "ok", "database": "ok"}

    async def ready() -> dict[str, str]:
        if "hang" in checks:
            await asyncio.sleep(60)
        return checks

    app = create_app("test", "1", idle, [router])
    app.state.ready = ready
    with serving(app) as port:
        assert exchange(port, request("GET", "/healthz")).document == {"status": "ok"}
        assert exchange(port, request("GET", "/readyz")).status == 200
        checks["broker"] = "is away since 10:00"
        answer = exchange(port, request("GET", "/readyz"))
        assert (answer.status, answer.document["checks"]["broker"]) == (503, "is away since 10:00")
        checks["hang"] = "yes"
        answer = exchange(port, request("GET", "/readyz"))
        assert answer.status == 503
        assert answer.document["checks"] == {"checks": "did not answer within 2 seconds", "background": "ok"}


def test_without_an_authenticator_no_key_is_valid() -> None:
    """A service that forgot to say who may call is closed, not open."""
    with serving(create_app("test", "1", idle, [router])) as port:
        answer = exchange(port, request("POST", "/v1/scores", b"{}", authorization="Bearer a"))
        assert answer.status == 401


def test_a_websocket_is_refused_with_a_problem() -> None:
    """Before the WebSocket is accepted it is an ordinary HTTP answer, afterwards the reason of its closing."""
    sockets = APIRouter()

    @sockets.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        raise Problem(401, "Unauthorized", "No token.")

    @sockets.websocket("/late")
    async def late(websocket: WebSocket) -> None:
        await websocket.accept()
        raise Problem(401, "Unauthorized", "Token expired.")

    handshake = request(
        "GET",
        "/ws",
        connection="Upgrade",
        upgrade="websocket",
        sec_websocket_version="13",
        sec_websocket_key="AAAAAAAAAAAAAAAAAAAAAA==",
    )
    with serving(create_app("test", "1", idle, [sockets])) as port:
        answer = exchange(port, handshake)
        assert (answer.status, answer.document["detail"]) == (401, "No token.")
        answer = exchange(port, handshake.replace(b"host: localhost\r\n", b""))
        assert (answer.status, answer.document["title"]) == (400, "Bad Request")
        with connect(port) as connection:
            connection.sendall(handshake.replace(b"/ws", b"/late"))
            data = b""
            while b"expired." not in data:
                chunk = connection.recv(1000)
                assert chunk, data
                data += chunk
    assert b"\x03\xf0Token expired." in data  # 1008


def test_open_streams_are_told_to_end_before_the_server_waits_for_them() -> None:
    """`app.state.stopping` is set before that, so that a stream can say good-bye instead of being cut."""
    streams = APIRouter()
    begun = threading.Event()
    app = create_app("test", "1", idle, [streams])

    async def words() -> AsyncIterator[bytes]:
        begun.set()
        yield b"hello "
        await app.state.stopping.wait()
        yield b"good-bye"

    @streams.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(words())

    app.router.routes.extend(streams.routes)
    with serving(app) as port:
        connection = connect(port)
        connection.sendall(request("GET", "/stream"))
        assert begun.wait(5)
    with connection:
        data = b""
        while chunk := connection.recv(1000):
            data += chunk
    assert b"hello" in data
    assert b"good-bye" in data


def test_what_cannot_be_finished_in_time_is_answered() -> None:
    """A request that outlasts the shutdown gets a 503 that says when to come again."""
    routes = APIRouter(route_class=StrictRoute)
    begun = threading.Event()

    @routes.get("/endless")
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    with serving(create_app("test", "1", idle, [routes]), shutdown_seconds=0.5) as port:
        connection = connect(port)
        connection.sendall(request("GET", "/endless"))
        assert begun.wait(5)
    with connection:
        answer = read_answer(connection)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


# --- the process ---------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
from contextlib import asynccontextmanager
from fastapi import APIRouter
from bellhop.observe.logs import configure_logging
from bellhop.settings import ServiceSettings
from bellhop.web.server import create_app, serve
from bellhop.web.strict_json import StrictRoute

router = APIRouter(route_class=StrictRoute)

@router.get("/quick")
async def quick() -> dict[str, str]:
    return {}

@router.get("/slow")
async def slow() -> dict[str, str]:
    print("begun", flush=True)
    await asyncio.sleep(1)
    return {"slow": "done"}

@asynccontextmanager
async def lifespan(app):
    yield
    print("cleaned up", flush=True)

settings = ServiceSettings.load()
configure_logging("test", settings)
serve(create_app("test", "1", lifespan, [router]), settings)
"""


def start(port: int, **settings: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "BELLHOP_AMQP_URL": "amqp://a:b@localhost",
        "BELLHOP_DATABASE_URL": "sqlite+aiosqlite:///x",
        "BELLHOP_TOKEN_KEY": "k" * 32,
        "BELLHOP_PORT": str(port),
        **settings,
    }
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"listening .*url=http://127\.0\.0\.1:(\d+)", line)
    assert found, line
    return int(found[1])


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT], ids=lambda ending: ending.name)
def test_a_signal_ends_the_process_in_order(ending: signal.Signals) -> None:
    """The request in hand is answered, the lifespan ends, the exit code is 0, and nothing looks like an error."""
    with start(0) as process:
        assert process.stdout is not None
        with connect(port_of(process)) as connection:
            connection.sendall(request("GET", "/slow"))
            assert process.stdout.readline() == "begun\n"
            process.send_signal(ending)
            assert read_answer(connection).document == {"slow": "done"}
        output = process.stdout.read()
        assert process.wait(10) == 0
    assert "cleaned up" in output
    assert "Traceback" not in output
    assert "error" not in output


def call_until(port: int, left: threading.Event) -> Iterator[Answer]:
    """Send requests on one connection, a few milliseconds apart, and on another one when an answer says `close`.

    One more is sent after `left` is set.
    """
    connection, more = connect(port), True
    try:
        while more:
            more = not left.wait(0.003)
            connection.sendall(request("GET", "/quick"))
            answer = read_answer(connection)
            yield answer
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = connect(port)
    finally:
        connection.close()


def test_clients_notice_that_a_server_stops_before_it_closes_anything() -> None:
    """While it drains, health checks are 503 and every request is answered, with `Connection: close`."""
    left = threading.Event()
    with start(0, BELLHOP_DRAIN_SECONDS="1.5") as process, ThreadPoolExecutor() as threads:
        port = port_of(process)
        idle = connect(port)
        callers = [threads.submit(lambda: list(call_until(port, left))) for _ in range(4)]
        try:
            idle.sendall(request("GET", "/readyz"))
            assert read_answer(idle).status == 200
            process.send_signal(signal.SIGTERM)
            # As a load balancer does: it sends no more after three checks that failed.
            failed: list[Answer] = []
            while len(failed) < 3:
                answer = exchange(port, request("GET", "/readyz"))
                failed += [answer] if answer.status == 503 else []
            alive = exchange(port, request("GET", "/healthz"))
        finally:
            left.set()
        answers = [caller.result(10) for caller in callers]
        idle.sendall(request("GET", "/quick"))
        last = read_answer(idle)
        idle.close()
        assert process.wait(10) == 0
    assert failed[0].document == {"status": "not ready", "checks": {"service": "is shutting down"}}
    assert (alive.status, alive.document) == (503, {"status": "shutting down"})
    assert (last.status, last.headers["connection"]) == (200, "close"), "an idle connection was kept, and then given up"
    assert {answer.status for each in answers for answer in each} == {200}
    assert all(each[-1].headers["connection"] == "close" for each in answers)


def test_an_answer_in_hand_also_says_that_its_connection_closes() -> None:
    """The request came before SIGTERM, its answer comes while the server drains."""
    with start(0, BELLHOP_DRAIN_SECONDS="1.5") as process:
        assert process.stdout is not None
        with connect(port_of(process)) as connection:
            connection.sendall(request("GET", "/slow"))
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGTERM)
            answer = read_answer(connection)
        assert (answer.document, answer.headers["connection"]) == ({"slow": "done"}, "close")
        assert process.wait(10) == 0


def test_a_taken_port_is_one_sentence() -> None:
    """Exit code 1, and what to do about it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with start(port) as process:
            output, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    sentence = f"Port {port} on 127.0.0.1 is in use. End the other program, or set BELLHOP_PORT to a free port.\n"
    assert output == sentence
