"""Bad input over real sockets, on all three HTTP faces: a small problem document, never a 500, never silence."""

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path

from bellhop.web.request_limits import Limits
from tests.faults.faces import Face, three_faces
from tests.support import Vhost, wait_until
from tests.support.serving import Answer, connect, exchange, read_answer, request

JSON = "application/json"


def _deep(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


# What is wrong with the JSON -> (the body, the statuses that are right). Sent to every face that takes a body.
BODIES: dict[str, tuple[bytes, set[int]]] = {
    "nothing": (b"", {400, 422}),
    "cut off": (b'{"x": 1', {400, 422}),
    "NaN": (b'{"x": NaN}', {400, 422}),
    "Infinity": (b'{"x": -Infinity}', {400, 422}),
    "1e400": (b'{"x": 1e400}', {400, 422}),
    "depth bomb": (_deep(100_000), {400, 422}),
    "depth 33": (_deep(33), {400, 422}),
    "5,000 digits": (b'{"x": ' + b"9" * 5000 + b"}", {400, 422}),
    "2^63": (b'{"x": 9223372036854775808}', {400, 422}),
    "duplicate keys": (b'{"x": 1, "x": 2}', {400, 422}),
    "unknown field": (b'{"is_admin": true}', {422}),
    "lone surrogate": (b'{"x": "\\ud800"}', {400, 422}),
    "NUL": (b'{"x": "\\u0000"}', {400, 422}),
    "bad UTF-8": (b'{"x": "\xff"}', {400, 422}),
    "byte order mark": (b"\xef\xbb\xbf{}", {400, 422}),
    "UTF-16": ("{}".encode("utf-16"), {400, 422}),
    "not an object": (b"5", {422}),
    "null": (b"null", {400, 422}),
    "a megabyte of blanks": (b" " * 1_000_000, {400, 422}),
    "a huge key": (b'{"' + b"k" * 500_000 + b'": 1}', {422}),
    "100,000 keys": (json.dumps({f"k{n}": n for n in range(40_000)}).encode(), {422}),
}

_POST = b"POST /v1/mail HTTP/1.1\r\nHost: a\r\n"

# Whole requests, as bytes -> the statuses that are right; None: the connection may simply be closed.
REQUESTS: dict[str, tuple[Callable[[Face], bytes], set[int | None]]] = {
    "no HTTP at all": (lambda face: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, {400, None}),
    "wrong method": (lambda face: _authorised(face, "PATCH", face.post[0]), {405}),
    "TRACE": (lambda face: _authorised(face, "TRACE", face.post[0]), {405}),
    "CONNECT": (lambda face: b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405}),
    "unknown path": (lambda face: _authorised(face, "GET", "/v1/nothing"), {404}),
    "dots in the path": (lambda face: _authorised(face, "GET", "/v1/..%2f..%2fetc/passwd"), {404}),
    "dots in the path, plain": (lambda face: _authorised(face, "GET", "/live/../../../../etc/passwd"), {404}),
    "NUL in the path": (lambda face: _authorised(face, "GET", "/v1/%00"), {404}),
    "bad UTF-8 in the path": (lambda face: _authorised(face, "GET", "/v1/tasks/%ff%fe"), {400, 404}),
    "bad UTF-8 in the query": (lambda face: _authorised(face, "GET", "/v1/tasks?state=%ff"), {400, 404, 422}),
    "a 16 KB URL": (lambda face: _authorised(face, "GET", "/" + "a" * 16_384), {414}),
    "a 64 KB header": (lambda face: _authorised(face, "GET", "/", x="a" * 65_536), {431}),
    "1,000 headers": (lambda face: _authorised(face, "GET", "/", **{f"x{n}": "1" for n in range(1000)}), {431}),
    "two Hosts": (lambda face: b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    "no Host": (lambda face: b"GET /healthz HTTP/1.1\r\n\r\n", {400}),
    "an absolute target": (lambda face: b"GET http://evil.example/healthz HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    "both lengths": (
        lambda face: _POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        {400, 401, 404, 405},
    ),
    "two lengths": (
        lambda face: b"POST /v1/mail HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        {400},
    ),
    "a negative length": (lambda face: b"POST /v1/mail HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", {400}),
    "an endless length": (
        lambda face: b"POST /v1/mail HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", {400, 413},
    ),
    "a bad chunk": (
        lambda face: _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", {400, 401, 404, 405},
    ),
    "HTTP/2 at once": (lambda face: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505, None}),
    "HTTP/9.9": (lambda face: b"GET /healthz HTTP/9.9\r\nHost: a\r\n\r\n", {400, 505, None}),
    "a folded header": (lambda face: b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", {200, 400}),
    "a header with NUL": (lambda face: b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", {400}),
    "a token in the query": (lambda face: request("GET", f"/v1/tasks?access_token={face.key}"), {401, 404}),
    "a key that is no ASCII": (lambda face: request("GET", _read_path(face), authorization="Bearer \xff\xfe"), {401}),
    "a key of 20 KB": (lambda face: request("GET", _read_path(face), authorization="Bearer " + "a" * 20_000), {401}),
    "another scheme": (lambda face: request("GET", _read_path(face), authorization="Basic YTpi"), {401}),
}  # fmt: skip


def _read_path(face: Face) -> str:
    return {"gateway": "/v1/tasks", "leaderboard": "/v1/leaderboards", "notifier": "/v1/poll"}[face.name]


def _authorised(face: Face, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    return request(method, path, body, authorization=f"Bearer {face.key}", **headers)


def _answer(face: Face, bytes_: bytes) -> Answer | None:
    """Send and read; None where the connection was closed without an answer."""
    with connect(face.port) as connection:
        try:
            connection.sendall(bytes_)
            return read_answer(connection)
        except (ConnectionError, AssertionError):
            return None


def _complaint(what: str, face: Face, answer: Answer | None, right: set[int | None]) -> str | None:
    """Say what is wrong with an answer; None if nothing is."""
    status = None if answer is None else answer.status
    if status not in right:
        return f"{face.name}, {what}: {status} instead of {right}; {answer.body[:200] if answer else ''!r}"
    if answer is not None and answer.status >= 400:
        if len(answer.body) > 8_000:
            return f"{face.name}, {what}: an answer of {len(answer.body)} bytes"
        if answer.headers.get("content-type") != "application/problem+json":
            return f"{face.name}, {what}: {answer.status} as {answer.headers.get('content-type')}"
        if answer.document["status"] != answer.status:
            return f"{face.name}, {what}: the document says {answer.document['status']}"
    return None


async def test_bad_input_is_answered_with_a_problem(vhost: Vhost, tmp_path: Path) -> None:
    """Every row on every face: the right 4xx, a small problem document, and the face goes on."""
    complaints: list[str | None] = []
    async with three_faces(vhost, tmp_path) as faces:
        for face in faces:
            for what, (make, right) in REQUESTS.items():
                answer = await asyncio.to_thread(_answer, face, make(face))
                complaints.append(_complaint(what, face, answer, right))
            if face.name == "notifier":
                continue
            path, good = face.post
            for what, (body, statuses) in BODIES.items():
                bytes_ = _authorised(face, "POST", path, body, content_type=JSON)
                complaints.append(_complaint(what, face, await asyncio.to_thread(_answer, face, bytes_), {*statuses}))
            body = json.dumps(good).encode()
            for headers in ({}, {"content_type": "text/plain"}, {"content_type": JSON, "content_encoding": "gzip"}):
                content = gzip.compress(b" " * 10_000_000) if "content_encoding" in headers else body
                answer = await asyncio.to_thread(_answer, face, _authorised(face, "POST", path, content, **headers))
                complaints.append(_complaint(f"headers {headers}", face, answer, {415}))
            for field, value in ((name, value) for name in good for value in (True, 1, None, [], {}, 1.5)):
                bytes_ = _authorised(face, "POST", path, json.dumps(good | {field: value}).encode(), content_type=JSON)
                answer = await asyncio.to_thread(_answer, face, bytes_)
                complaints.append(_complaint(f"{field} = {value}", face, answer, {422}))
        for face in faces:
            assert (await asyncio.to_thread(exchange, face.port, request("GET", "/readyz"))).status == 200
    assert list(filter(None, complaints)) == []


MAILS = {
    "a line end in the subject": {"subject": "a\r\nBcc: eve@example.com"},
    "a NUL in the subject": {"subject": "a\x00b"},
    "a line separator in the subject": {"subject": "a\u2028b"},
    "a line end in the address": {"to": "ada@example.com\r\nRCPT TO:<eve@example.com>"},
    "two addresses": {"to": "ada@example.com, eve@example.com"},
    "a display name": {"to": "Ada <ada@example.com>"},
    "an address literal": {"to": "a@[127.0.0.1]"},
    "a quoted local part": {"to": '"a b"@example.com'},
    "a list of addresses": {"to": ["ada@example.com"] * 1000},
    "a header that decides": {"headers": {"Bcc": "eve@example.com"}},
    "a line end in a header": {"headers": {"X-A": "a\r\nBcc: eve@example.com"}},
    "a colon in a header's name": {"headers": {"X-A: b\r\nBcc": "eve@example.com"}},
    "a key of our own": {"task_id": "mine"},
    "an owner": {"owner": "admin"},
    "a from": {"from": "ceo@example.com"},
    "a time without zone": {"send_at": "2030-01-01T00:00:00"},
    "a body of a megabyte": {"text": "x" * 600_000},
}
EVENTS = {
    "a type of 256 bytes": {"type": "ü" * 128},
    "a line end in the type": {"type": "a\nb"},
    "a NUL in the id": {"id": "a\x00"},
    "a bad time": {"time": "yesterday"},
}


async def test_what_travels_is_checked_before_it_does(vhost: Vhost, tmp_path: Path) -> None:
    """Mails and events that would do harm further on are 422 here, and nothing of them is kept."""
    complaints = []
    async with three_faces(vhost, tmp_path) as faces, faces[0].client(faces[0].key) as client:
        mail = {"to": "ada@example.com", "subject": "Hello", "text": "Hello"}
        for what, change in MAILS.items():
            answer = await client.post("/v1/mail", json=mail | change)
            if answer.status_code != 422:
                complaints.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        event = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b"}
        for what, change in EVENTS.items():
            answer = await client.post(
                "/v1/events", content=json.dumps(event | change),
                headers={"Content-Type": "application/cloudevents+json"},
            )  # fmt: skip
            if answer.status_code != 422:
                complaints.append(f"{what}: {answer.status_code} {answer.text[:200]}")
        for key in ("", "k" * 256, "a\x01b", "ä"):
            headers = {"Idempotency-Key": key.encode()}
            answer = await client.post("/v1/mail", json=mail, headers=headers)
            if answer.status_code != 400:
                complaints.append(f"idempotency key {key!r}: {answer.status_code}")
        assert (await client.get("/v1/tasks")).json()["tasks"] == []
    assert complaints == []


async def test_events_at_the_edge_of_what_is_allowed_go_out(vhost: Vhost, tmp_path: Path) -> None:
    """What is answered 202 can be published: with and without an idempotency key, nothing stays in the outbox."""
    event = {"specversion": "1.0", "source": "/s", "type": "a.b"}
    edges: list[dict[str, object]] = [
        {"time": "0001-01-01T00:00:00Z"},
        {"time": "0001-01-01T00:00:00+14:00"},
        {"time": "1969-12-31T23:59:59Z"},
        {"time": "9999-12-31T23:59:59-14:00"},
        {"source": "é" * 255},
        {"subject": "é" * 255},
        {"id": "€" * 255},
        {f"x{n}": "é" * 1024 for n in range(20)},
        {"x": 2**63 - 1, "y": -(2**63), "z": True},
        {"type": "x" * 128},
        {"dataschema": "é" * 998},
        {"data": {"x": "é" * 100_000}},
    ]  # fmt: skip
    complaints = []
    async with three_faces(vhost, tmp_path) as faces, faces[0].client(faces[0].key) as client:
        for number, edge in enumerate(edges):
            for keyed in (False, True):
                document = {"id": f"{number}-{keyed}"} | event | edge
                headers = {"Content-Type": "application/cloudevents+json"}
                headers |= {"Idempotency-Key": f"edge-{number}"} if keyed else {}
                answer = await client.post("/v1/events", content=json.dumps(document), headers=headers)
                if answer.status_code not in (202, 422):
                    complaints.append(f"{str(edge)[:60]}, keyed {keyed}: {answer.status_code} {answer.text[:300]}")
        # Whatever was taken so far, the next one still goes out: nothing stands in its way.
        taken = await client.post("/v1/notifications", json={"channels": ["news"], "title": "last"},
                                  headers={"Idempotency-Key": "last"})  # fmt: skip
        assert taken.status_code == 202

        async def all_out() -> bool:
            return (await client.get("/v1/system")).json()["outbox"] == {"waiting": 0, "failure": None}

        await asyncio.sleep(1)  # two sweeps of the outbox: what it shows is not older than these requests
        await wait_until(all_out, 10, "the outbox is empty", interval=0.3)
        assert (await client.get("/readyz")).status_code == 200
    assert complaints == []


def _drip(face: Face, first: bytes, drop: bytes, pause: float, limit: float) -> float:
    """Send `first`, then `drop` again and again; return after how many seconds the other side had enough."""
    began = time.monotonic()
    with connect(face.port) as connection:
        connection.sendall(first)
        connection.settimeout(pause)
        while time.monotonic() - began < limit:
            try:
                connection.sendall(drop)
                if not connection.recv(65536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
            if first:  # answered: it will be closed
                connection.settimeout(limit)
                while connection.recv(65536):
                    pass
                break
    return time.monotonic() - began


async def test_slow_and_endless_requests_are_cut(vhost: Vhost, tmp_path: Path) -> None:
    """A head has 10 s and a body 30 s to arrive, and a body that never ends is cut at the limit; on every face."""
    limits = Limits()
    async with three_faces(vhost, tmp_path) as faces:
        waits = []
        for face in faces:
            head = f"POST {face.post[0]} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {face.key}\r\n".encode()
            slow = head + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
            chunked = head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
            waits += [
                (face, "nothing at all", 10.0, asyncio.to_thread(_drip, face, b"", b"", 0.5, 60)),
                (face, "a slow head", 10.0, asyncio.to_thread(_drip, face, b"GET / HTTP/1.1\r\nX: ", b"a", 0.5, 60)),
                # Where nothing takes a body, the answer comes before it, and it has the time that every body has.
                (
                    face,
                    "an endless body",
                    30.0 if face.name == "notifier" else 10.0,
                    asyncio.to_thread(_drip, face, chunked, chunk, 0.01, 60),
                ),
            ]
            if face.name != "notifier":  # a POST there is a 405 before its body
                waits.append((face, "a slow body", 30.0, asyncio.to_thread(_drip, face, slow, b" ", 0.5, 60)))
        seconds = await asyncio.gather(*(wait for _, _, _, wait in waits))
        for face in faces:
            assert (await asyncio.to_thread(exchange, face.port, request("GET", "/readyz"))).status == 200
    assert limits.head_seconds == 10
    late = [
        f"{face.name}, {what}: {took:.1f} s"
        for (face, what, most, _), took in zip(waits, seconds, strict=True)
        if took > most + 3
    ]
    assert late == []


async def test_a_client_that_leaves_costs_nothing(vhost: Vhost, tmp_path: Path) -> None:
    """Connections dropped at any byte of a request: no half mail, no traceback, and the next request is served."""
    async with three_faces(vhost, tmp_path) as faces, faces[0].client(faces[0].key) as client:
        body = json.dumps(faces[0].post[1]).encode()
        whole = _authorised(faces[0], "POST", "/v1/mail", body, content_type=JSON)
        for cut in range(1, len(whole), max(1, len(whole) // 20)):
            with connect(faces[0].port) as connection:
                connection.sendall(whole[:cut])
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        assert (await client.get("/v1/tasks")).json()["tasks"] == []
        assert (await client.post("/v1/mail", json=faces[0].post[1])).status_code == 202
