"""What a client gets for bad input, over real sockets from a real server."""

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bellhop.contracts.base import Contract
from bellhop.web.auth import Caller, Scope, hash_key, key_matches, new_key, require, split_key
from bellhop.web.plain_route import PlainRoute
from bellhop.web.problems import Problem
from bellhop.web.rate_limit import Rate
from bellhop.web.request_limits import Limits
from bellhop.web.server import create_app
from bellhop.web.strict_json import StrictRoute
from tests.support.serving import Answer, connect, exchange, read_answer, request, serving

KEYS = {scope: new_key() for scope in (Scope.SCORES_WRITE, Scope.MAIL_READ, Scope.ADMIN)}
KEY = KEYS[Scope.SCORES_WRITE]
LIMITS = Limits(
    url=1024, head=4096, headers=20, body=10_000, head_seconds=0.5, body_seconds=0.5, address_rate=None, key_rate=None
)

router = APIRouter(route_class=StrictRoute)


class Point(Contract):
    """A small body."""

    player: str
    score: Annotated[int, Field(ge=0)]


class Taken(Contract):
    """A small answer."""

    player: str
    by: str


@router.post("/points", status_code=202)
async def take_point(point: Point, caller: Annotated[Caller, Depends(require(Scope.SCORES_WRITE))]) -> Taken:
    """The shape of nearly every route: a key and a body."""
    return Taken(player=point.player, by=caller.id)


@router.post("/lists")
async def take_points(points: list[Point]) -> dict[str, int]:
    """Many points, of anybody."""
    return {"accepted": len(points)}


def sub_dependency(limit: Annotated[int, Query(ge=1)] = 10) -> int:
    """A dependency of a route's own."""
    return limit


@router.post("/general")
async def general(
    point: Point,
    limit: Annotated[int, Depends(sub_dependency)],
    caller: Annotated[Caller, Depends(require(Scope.SCORES_WRITE))],
) -> dict[str, Any]:
    """A route with a dependency of its own."""
    return {"player": point.player, "limit": limit, "by": caller.id}


plain = APIRouter(route_class=PlainRoute)


@router.post("/stock/{number}", status_code=202)
@plain.post("/plain/{number}", status_code=202)
async def take_numbered(
    request: Request,
    number: int,
    point: Point,
    caller: Annotated[Caller, Depends(require(Scope.SCORES_WRITE))],
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
) -> Response:
    """One function, called by FastAPI and by a plain route."""
    return Response(f"{number} {point.player} {caller.id} {limit} {request.method}", 202)


@router.get("/things/{number}")
async def thing(number: int, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> dict[str, int]:
    """Parameters in the path and in the query string."""
    return {"number": number, "limit": limit}


@router.get("/crash")
async def crash() -> None:
    """A mistake of ours."""
    raise RuntimeError("password=hunter2")


@router.get("/conflict")
async def conflict() -> None:
    """A refusal by a route."""
    raise Problem(409, "Conflict", "It is there already.", type="urn:test:there", extensions={"id": "a"})


@router.get("/broken-stream")
async def broken_stream() -> StreamingResponse:
    """Fails when half of the answer is out."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("in the middle")

    return StreamingResponse(chunks())


@router.get("/address")
async def address(request: Request) -> Response:
    """Say where the request comes from."""
    assert request.client is not None
    return Response(request.client.host)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Know the three keys."""
    callers = {}
    for scope, key in KEYS.items():
        parts = split_key(key)
        assert parts is not None
        callers[parts[0]] = (hash_key(parts[1]), Caller(parts[0], scope.value, frozenset({scope.value})))

    async def authenticate(key: str) -> Caller | None:
        parts = split_key(key)
        kept, caller = callers.get(parts[0], ("", None)) if parts else ("", None)
        return caller if parts and key_matches(parts[1], kept) else None

    app.state.authenticate = authenticate
    yield


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server with small limits."""
    with serving(create_app("test", "1", lifespan, [router, plain], limits=LIMITS)) as port:
        yield port


def post(port: int, body: bytes, path: str = "/points", key: str | None = KEY, **headers: str) -> Answer:
    """POST `body` as JSON, unless `headers` say otherwise."""
    values = {"content_type": "application/json", **({"authorization": f"Bearer {key}"} if key else {}), **headers}
    return exchange(port, request("POST", path, body, **values))


def assert_problem(answer: Answer, status: int) -> Any:
    """Check that `answer` is a small problem document that fits its status, and return it."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.document
    assert document["status"] == status
    assert document["title"]
    assert document["detail"].endswith((".", "…"))
    assert len(answer.body) < 8192
    return document


GOOD = b'{"player":"ada","score":1}'


def test_a_good_request_is_taken(port: int) -> None:
    """With a key that may and a body that is right, the answer has the route's status and model."""
    answer = post(port, GOOD)
    assert answer.status == 202
    assert answer.document == {"player": "ada", "by": KEY[3:11]}


def test_a_good_request_is_taken_with_a_dependency(port: int) -> None:
    """A route with dependencies of its own works the same."""
    answer = post(port, GOOD, "/general?limit=3")
    assert answer.document == {"player": "ada", "limit": 3, "by": KEY[3:11]}


PATHS = ["/points", "/general", "/plain/1"]
"""Of a FastAPI route, of one with a dependency of its own, and of a plain one."""

BAD_BODIES = {
    "empty": (b"", 422),
    "truncated": (b'{"player":"ada","score":1', 400),
    "NaN": (b'{"player":"ada","score":NaN}', 422),
    "Infinity": (b'{"player":"ada","score":Infinity}', 422),
    "1e400": (b'{"player":"ada","score":1e400}', 422),
    "depth bomb": (b"[" * 9000, 400),
    "5,000 digits": (b'{"player":"ada","score":' + b"1" * 5000 + b"}", 400),
    "2^63": (b'{"player":"ada","score":9223372036854775808}', 422),
    "1e30 for an integer": (b'{"player":"ada","score":1e30}', 422),
    "true for an integer": (b'{"player":"ada","score":true}', 422),
    "string for an integer": (b'{"player":"ada","score":"1"}', 422),
    "duplicate key": (b'{"player":"ada","player":"eve","score":1}', 422),
    "unknown field": (b'{"player":"ada","score":1,"is_admin":true}', 422),
    "lone surrogate": (b'{"player":"\\ud800","score":1}', 422),
    "NUL": (b'{"player":"\\u0000","score":1}', 422),
    "invalid UTF-8": (b'{"player":"\xff","score":1}', 400),
    "negative": (b'{"player":"ada","score":-1}', 422),
    "not an object": (b"[]", 422),
    "null": (b"null", 422),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies_are_refused(port: int, name: str, path: str) -> None:
    """Each gets its status from every kind of route."""
    body, status = BAD_BODIES[name]
    assert_problem(post(port, body, path), status)


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        ("1", GOOD),
        ("1?limit=3", GOOD),
        ("x?limit=0", GOOD),
        ("x?limit=101", b'{"player":1}'),
        ("1?limit=1&limit=2", GOOD),
        ("1?lmit=1&limit=a", GOOD),
        ("1?limit=%00", GOOD),
        ("%00", GOOD),
        ("x", b"{"),
        *(("1", body) for body, _ in BAD_BODIES.values()),
    ],
)
def test_a_plain_route_answers_as_fastapi_does(port: int, rest: str, body: bytes) -> None:
    """One function behind both: the same status and the same bytes, whatever is sent."""
    stock, plain = post(port, body, f"/stock/{rest}"), post(port, body, f"/plain/{rest}")
    assert (plain.status, plain.body) == (stock.status, stock.body)
    assert plain.headers.get("content-type") == stock.headers.get("content-type")


def test_an_invalid_field_is_pointed_at_and_not_echoed(port: int) -> None:
    """The answer names the field by a JSON pointer; the value that was sent does not come back."""
    answer = post(port, b'[{"player":"ada","score":1},{"player":"secret-in-the-wrong-field","score":-77123}]', "/lists")
    document = assert_problem(answer, 422)
    assert [error["pointer"] for error in document["errors"]] == ["#/1/score"]
    assert b"77123" not in answer.body
    assert b"secret" not in answer.body


def test_a_thousand_mistakes_make_a_small_answer(port: int) -> None:
    """The first twenty are listed, and the detail says how many there were."""
    answer = post(port, b"[" + b",".join([b"0"] * 1000) + b"]", "/lists")
    document = assert_problem(answer, 422)
    assert len(document["errors"]) == 20
    assert "1000" in document["detail"]


def test_parameters_are_validated(port: int) -> None:
    """What is wrong in path and query string is named by place and name, all at once."""
    document = assert_problem(exchange(port, request("GET", "/things/x?limit=0")), 422)
    assert [error["pointer"] for error in document["errors"]] == ["path:number", "query:limit"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": ""},
        {"content_type": "application/jsonx"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_encoding": "gzip"},
        {"content_encoding": "br, gzip"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_plain_json_is_refused(port: int, headers: dict[str, str], path: str) -> None:
    """415 for another content type, and for any content encoding, whatever the body is."""
    assert_problem(post(port, GOOD, path, **headers), 415)


def test_a_missing_content_type_is_refused(port: int) -> None:
    """415: a browser's form sends bodies without asking anybody, but never as JSON."""
    answer = exchange(port, request("POST", "/points", GOOD, authorization=f"Bearer {KEY}"))
    assert_problem(answer, 415)


@pytest.mark.parametrize("content_type", ["application/json", "application/json;charset=UTF-8", "application/a.b+json"])
def test_json_by_any_of_its_names_is_taken(port: int, content_type: str) -> None:
    """Parameters and suffixes that change nothing are allowed."""
    assert post(port, GOOD, content_type=content_type).status == 202


def test_missing_and_wrong_keys_get_the_same_answer(port: int) -> None:
    """401 with one and the same head and body, so that nobody learns which keys exist."""
    answers = [
        post(port, GOOD, key=None),
        post(port, GOOD, key="nonsense"),
        post(port, GOOD, key=new_key()),
        post(port, GOOD, key=KEY[:-1] + ("A" if KEY[-1] != "A" else "B")),
        post(port, GOOD, key=None, authorization=f"Basic {KEY}"),
        post(port, GOOD, key=None, authorization="Bearer"),
        post(port, GOOD, f"/points?access_token={KEY}", key=None),
    ]
    for answer in answers:
        assert_problem(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    assert len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize("path", PATHS)
def test_the_key_is_asked_for_before_the_body_is_read(port: int, path: str) -> None:
    """Without a key, a broken body of the wrong type is answered 401, and not before it was even sent."""
    assert_problem(post(port, b"{", path, key=None, content_type="text/plain"), 401)
    with connect(port) as connection:
        connection.sendall(request("POST", path, content_length="5000", content_type="application/json"))
        assert_problem(read_answer(connection), 401)


@pytest.mark.parametrize("path", PATHS)
def test_a_key_without_the_scope_is_refused(port: int, path: str) -> None:
    """403 that names the scope (RFC 6750, 3.1)."""
    answer = post(port, GOOD, path, key=KEYS[Scope.MAIL_READ])
    assert_problem(answer, 403)
    assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="scores:write"'


def test_the_admin_scope_is_every_scope(port: int) -> None:
    """A key with `admin` may do what needs another scope."""
    assert post(port, GOOD, key=KEYS[Scope.ADMIN]).status == 202


@pytest.mark.parametrize("path", ["/nothing", "/..%2fpoints", "/points/", "/%00", "/%ff", "//points", "/points%20"])
def test_unknown_paths_are_not_found(port: int, path: str) -> None:
    """404, and no redirect to a path that was not asked for."""
    assert_problem(exchange(port, request("GET", path)), 404)


@pytest.mark.parametrize("method", ["GET", "TRACE", "DELETE", "OPTIONS"])
def test_wrong_methods_are_not_allowed(port: int, method: str) -> None:
    """405 with the methods that are."""
    answer = exchange(port, request(method, "/points"))
    assert_problem(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_problem_of_a_route_comes_out_as_it_went_in(port: int) -> None:
    """Type, detail and extensions are those that the route gave."""
    document = assert_problem(exchange(port, request("GET", "/conflict")), 409)
    assert document == {
        "type": "urn:test:there",
        "title": "Conflict",
        "status": 409,
        "detail": "It is there already.",
        "id": "a",
    }


def test_a_crash_says_nothing_and_is_logged_once(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """500 with a number that finds the one log line, which has the traceback; the connection goes on."""
    with connect(port) as connection:
        connection.sendall(request("GET", "/crash"))
        document = assert_problem(read_answer(connection), 500)
        assert "hunter2" not in str(document)
        connection.sendall(request("GET", "/things/1"))
        assert read_answer(connection).status == 200
    records = [record for record in caplog.records if record.exc_info]
    assert len(records) == 1
    assert document["instance"].removeprefix("urn:uuid:") in records[0].getMessage()


def test_a_crash_in_the_middle_of_an_answer_cuts_the_connection(port: int) -> None:
    """The client must not take half an answer for a whole one: the last chunk never comes."""
    with connect(port) as connection:
        connection.sendall(request("GET", "/broken-stream"))
        data = b""
        while chunk := connection.recv(65536):
            data += chunk
    assert data.endswith(b"5\r\nfirst\r\n")


# --- size and time -------------------------------------------------------------------------------------------------


def test_a_body_that_is_announced_too_large_is_refused(port: int) -> None:
    """413 at one byte above the limit, and the last byte below it is taken."""
    padding = LIMITS.body - len(GOOD)
    assert post(port, GOOD + b" " * padding).status == 202
    answer = post(port, GOOD + b" " * (padding + 1))
    assert_problem(answer, 413)
    assert answer.headers["connection"] == "close"


def test_an_endless_body_is_refused_at_the_limit(port: int) -> None:
    """Chunked and without a length: 413 soon after the limit, and the connection is closed."""
    with connect(port) as connection:
        connection.sendall(
            request(
                "POST",
                "/points",
                transfer_encoding="chunked",
                authorization=f"Bearer {KEY}",
                content_type="application/json",
            )
        )
        for _ in range(100_000):
            try:
                connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
            except ConnectionError:
                break
        else:
            raise AssertionError("the server took 100 MB")
        assert_problem(read_answer(connection), 413)


def test_who_expects_100_continue_is_refused_without_it(port: int) -> None:
    """A client that asks first gets the 413 at once and never sends the body."""
    with connect(port) as connection:
        connection.sendall(
            request("POST", "/points", expect="100-continue", content_length="99999", authorization=f"Bearer {KEY}")
        )
        assert_problem(read_answer(connection), 413)


def test_a_slow_body_is_given_up(port: int) -> None:
    """408 after the deadline, although a byte comes now and then."""
    head = request(
        "POST", "/points", content_length="500", authorization=f"Bearer {KEY}", content_type="application/json"
    )
    assert_problem(trickle(port, head + b"{", b" "), 408)


def test_a_slow_head_is_given_up(port: int) -> None:
    """408 after the deadline, although a byte comes now and then."""
    assert_problem(trickle(port, b"GET /things/1 HTTP/1.1\r\nHost: a\r\nX-Slow: ", b"a"), 408)


def test_a_slow_head_is_given_up_on_a_used_connection(port: int) -> None:
    """The second request of a connection has the same deadline as the first."""
    with connect(port) as connection:
        connection.sendall(request("GET", "/things/1"))
        assert read_answer(connection).status == 200
        connection.sendall(b"\r\n")  # a byte that begins nothing, but stops uvicorn's own clock
        began = time.monotonic()
        assert_problem(read_answer(connection), 408)
        assert time.monotonic() - began < 5 * LIMITS.head_seconds


def test_a_body_after_its_answer_does_not_keep_the_connection() -> None:
    """Who goes on sending the body of a request that was refused already, and then nothing, is cut off."""
    with serving(create_app("test", "1", lifespan, [router], limits=LIMITS)) as port, connect(port) as connection:
        connection.sendall(request("POST", "/points", content_length="2"))
        assert read_answer(connection).status == 401
        connection.sendall(b"{}")
        assert connection.recv(1000) == b""


def test_a_connection_that_says_nothing_is_closed(port: int) -> None:
    """Not a byte within the deadline: there is nobody to answer."""
    with connect(port) as connection:
        assert connection.recv(1000) == b""


def trickle(port: int, start: bytes, drop: bytes) -> Answer:
    """Send `start`, then `drop` again and again, until an answer comes, which must be soon."""
    with connect(port) as connection:
        connection.sendall(start)
        connection.settimeout(0.05)
        began = time.monotonic()
        while time.monotonic() - began < 5:
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                connection.sendall(drop)
                continue
            connection.settimeout(5)
            return read_answer(connection)
    raise AssertionError("the server waited for more than 5 seconds")


def test_a_long_url_is_refused(port: int) -> None:
    """414 above the limit, also when the rest of the head never comes."""
    assert_problem(exchange(port, request("GET", "/" + "a" * LIMITS.url)), 414)
    assert_problem(exchange(port, b"GET /" + b"a" * 16_384 + b" HT"), 414)


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 65_536 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 65_536,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 400) for n in range(15)) + b"\r\n",
    ],
    ids=["one huge header", "one endless header", "1,000 headers", "several large headers"],
)
def test_a_large_head_is_refused(port: int, head: bytes) -> None:
    """431 for one large header, for many small ones, and for one that never ends."""
    assert_problem(exchange(port, head), 431)


def test_a_head_below_the_limit_may_come_in_pieces(port: int) -> None:
    """Many packets do not make a head any larger than it is."""
    headers = {f"x_{number}": "a" * 300 for number in range(10)}
    whole = request("GET", "/things/1", **headers)
    with connect(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(whole), 100):
            connection.sendall(whole[start : start + 100])
            time.sleep(0.002)
        assert read_answer(connection).status == 200


def test_an_endless_trailer_is_cut_off(port: int) -> None:
    """What comes behind the last chunk, and behind the answer, has an end as well."""
    with connect(port) as connection:
        connection.sendall(request("POST", "/points", transfer_encoding="chunked"))
        assert read_answer(connection).status == 401
        connection.sendall(b"0\r\nX: ")
        taken = 0
        with contextlib.suppress(ConnectionError):
            while taken < 100 * 1024 * 1024:
                connection.sendall(b"a" * 1024)
                taken += 1024
    assert taken < 20 * 1024 * 1024  # what the sockets buffer, and not much more


@pytest.mark.parametrize(
    "head",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\nHost: a\r\n\r\n",
        b"FROBNICATE / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://example.com/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /things/1 HTTP/1.1\r\n\r\n",
        b"GET /things/1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /things/1 HTTP/1.1\r\nHost: a\r\nX Y: a\r\n\r\n",
        b"GET /things/1 HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"POST /lists HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /lists HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /lists HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /lists HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
    ],
    ids=lambda head: repr(head[:60]),
)
def test_what_is_no_proper_http_is_refused(port: int, head: bytes) -> None:
    """400 as a problem document; above all for what two readers could understand in two ways (smuggling)."""
    assert_problem(exchange(port, head), 400)


def test_a_broken_chunk_is_refused(port: int) -> None:
    """400 while the route already waits for the body, which it never gets."""
    head = request(
        "POST",
        "/points",
        transfer_encoding="chunked",
        authorization=f"Bearer {KEY}",
        content_type="application/json",
    )
    assert_problem(exchange(port, head + b"zz\r\n"), 400)


def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    """Three requests in one packet get three answers."""
    with connect(port) as connection:
        connection.sendall(b"".join(request("HEAD", f"/things/{number}", x="a") for number in range(3)))
        data = b""
        while data.count(b"\r\n\r\n") < 3:
            data += connection.recv(65536)
    assert data.count(b"HTTP/1.1 200") == 3


def test_a_client_that_leaves_in_the_middle_is_no_error(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Connections cut at any point of a request leave no traceback, and the server goes on."""
    whole = request("POST", "/points", GOOD, authorization=f"Bearer {KEY}", content_type="application/json")
    for cut in range(0, len(whole), 7):
        with connect(port) as connection:
            connection.sendall(whole[:cut])
    assert post(port, GOOD).status == 202
    assert [record for record in caplog.records if record.exc_info] == []


def test_forwarded_headers_count_only_from_this_machine(port: int) -> None:
    """A proxy on the loopback address may say for whom it asks; anybody else may not."""
    forged = request("GET", "/address", x_forwarded_for="203.0.113.7")
    assert exchange(port, forged, source="127.0.0.2").body == b"127.0.0.2"
    assert exchange(port, forged, source="127.0.0.1").body == b"203.0.113.7"


def test_no_answer_says_what_the_server_is_made_of(port: int) -> None:
    """There is no Server header, and browsers are told not to guess types."""
    answer = exchange(port, request("GET", "/things/1"))
    assert "server" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_http_1_0_needs_no_host(port: int) -> None:
    """Unlike HTTP/1.1 (RFC 9112, 3.2), but two are too many."""
    assert exchange(port, b"GET /things/1 HTTP/1.0\r\n\r\n").status == 200
    assert_problem(exchange(port, b"GET /things/1 HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n"), 400)


# --- rates ---------------------------------------------------------------------------------------------------------


def test_rates_are_limited_by_key_and_by_address() -> None:
    """429 with Retry-After; one key's or address's excess is nobody else's, and health checks are never counted."""
    limits = Limits(address_rate=Rate(0.1, 3), key_rate=Rate(0.1, 2))
    with serving(create_app("test", "1", lifespan, [router], limits=limits)) as port:
        assert [post(port, GOOD).status for _ in range(2)] == [202, 202]
        refused = post(port, GOOD)
        document = assert_problem(refused, 429)
        assert refused.headers["retry-after"] == "10"
        assert document["violated-policies"] == ["key"]
        assert refused.headers["ratelimit-policy"] == '"key";q=2;w=20'
        other = post(port, GOOD, key=KEYS[Scope.ADMIN])
        assert other.status == 202
        assert other.headers["ratelimit"] == '"key";r=1;t=10'

        anonymous = request("GET", "/things/1")
        assert [exchange(port, anonymous).status for _ in range(2)] == [200, 200]
        # The third token goes to a wrong key: guessing is counted like anonymous requests.
        assert post(port, GOOD, key=new_key()).status == 401
        assert post(port, GOOD, key=new_key()).status == 429
        assert exchange(port, anonymous).status == 429
        assert exchange(port, anonymous, source="127.0.0.9").status == 200
        assert exchange(port, request("GET", "/healthz")).status == 200
