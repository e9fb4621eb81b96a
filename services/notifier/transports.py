"""Server-Sent Events, WebSocket and long poll: three transports for the same log.

A stream and a socket are plain ASGI, without FastAPI: its call stack, kept for hours for ten thousand readers, would
more than double the memory of each.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

import orjson
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from bellhop.contracts.base import Contract
from bellhop.web.problems import Problem, problem_response
from bellhop.web.rate_limit import RATE, Limiter
from bellhop.web.tokens import Claims
from services.notifier import metrics
from services.notifier.admission import (
    Asked,
    Grant,
    check_query,
    counting_refusals,
    grant,
    read_request,
    read_token,
    split_channels,
)
from services.notifier.frames import Run, message, sse_message
from services.notifier.hub import Hub
from services.notifier.log import PIECE_BYTES, Log, Piece
from services.notifier.subscribers import Poll, Socket, Stream, transport_of

READY_SECONDS = 20.0
"""Limit of the wait for a process that is still reading the stream after its start; proxies may cut after 30 s."""
LAG_SECONDS = 1.0
"""Limit of the wait for an id that another replica gave and that this one has not read yet."""
STALL_SECONDS = 30.0
"""Limit of the time that a reader takes for one piece of a replay."""
FIRST_MESSAGE_SECONDS = 10.0
MAX_MESSAGE_BYTES = 64 * 1024

GAP = "The events after `after` are no longer available. Fetch the current state again; later events are live."
MAX_ECHO_CHARACTERS = 100
TEMPORARY = (429, 503)
PROBLEM_CODES = {401: 3000, 403: 3003, 413: 1009, 429: 1013, 503: 1013}
"""Close codes by status (IANA's WebSocket Close Code registry). 1013: try again later."""
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),  # a proxy that compresses would buffer the stream
    (b"x-accel-buffering", b"no"),  # nginx would buffer events
]


@dataclass(frozen=True, slots=True)
class ReaderContext:
    """What serving a reader needs."""

    hub: Hub
    limiter: Limiter
    token_key: str
    slow_reader_bytes: int
    origins: tuple[str, ...]
    """Origins of other sites whose pages may open a socket."""


async def sse(live: ReaderContext, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve `GET /v1/stream`."""
    asked = read_request(scope["query_string"], Headers(scope=scope))
    claims: Claims | None = None
    try:
        with counting_refusals(live.limiter, scope):
            if scope["method"] not in ("GET", "HEAD"):
                raise Problem(405, "Method Not Allowed", "Use GET.", headers={"Allow": "GET, HEAD"})
            claims = read_token(asked.token, live.token_key)
        live.limiter.count_subject(scope, claims.subject)
        check_query(scope["query_string"])
        granted = grant(claims, asked)
        if scope["method"] == "HEAD":
            await _answer_stream(send, b"")
            return
        stream = Stream(transport_of(scope), granted, live.slow_reader_bytes, live.hub.come_back)
        live.hub.admit(stream)
    except Problem as problem:
        if claims is not None and problem.status in TEMPORARY:
            await _answer_stream(send, _busy(problem, live.hub.come_back.refuse()))
        else:
            await problem_response(problem)(scope, receive, send)
        return
    _forget_request(scope)
    last_event_id = asked.last_event_id
    del asked, claims

    try:
        retry = b"retry: %d\n\n" % live.hub.come_back.milliseconds()
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await send({"type": "http.response.body", "body": retry, "more_body": True})
        await _catch_up(live.hub, stream, last_event_id)
        # From here on the hub writes. The client can only disconnect.
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        live.hub.leave(stream)


def _busy(problem: Problem, milliseconds: int) -> bytes:
    """Return a temporary refusal: for an EventSource every status but 200 is final (HTML standard, 9.2.3)."""
    event = sse_message("busy", status=problem.status, title=problem.title, detail=problem.detail)
    return b"retry: %d\n" % milliseconds + event


async def _answer_stream(send: Send, body: bytes) -> None:
    """Answer with a stream that ends after `body`.

    The connection is closed: a client that reconnects must not reach the same process by it, which may be stopping.
    """
    headers = [*SSE_HEADERS, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(live: ReaderContext, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve `/v1/ws`.

    Every refusal except that of an origin is a message and a close code: a page cannot read the status of a handshake.
    The token is sent as for a stream, or in the first message: `{"token": …, "last_event_id"?: …, "channels"?: […]}`.
    Later messages of the client are not read.
    """
    transport = transport_of(scope)
    socket = WebSocket(scope, receive, send)
    query = scope["query_string"]
    headers = Headers(raw=list(scope["headers"]))
    origin, host = socket.headers.get("origin"), socket.headers.get("host")
    # Before the socket is accepted, because uvicorn then logs the query: a token must not be logged.
    _forget_request(scope)
    reader: Socket | None = None
    accepted = False
    try:
        with counting_refusals(live.limiter, scope):
            _check_origin(origin, host, live.origins)
            await socket.accept()
            accepted = True
            asked = read_request(query, headers)
            del headers  # otherwise kept as long as the socket
            if not asked.token:
                asked = await _first_message(socket)
            claims = read_token(asked.token, live.token_key)
        live.limiter.count_subject(scope, claims.subject)
        check_query(query)
        granted = grant(claims, asked)
        del query, claims
        scope.pop(RATE, None)
        reader = Socket(transport, granted, live.slow_reader_bytes)
        live.hub.admit(reader)
        await _catch_up(live.hub, reader, asked.last_event_id)
        while (await receive())["type"] != "websocket.disconnect":
            pass
    except Problem as problem:
        if accepted:
            await socket.send_text(
                message("problem", status=problem.status, title=problem.title, detail=problem.detail).decode()
            )
            await socket.close(PROBLEM_CODES.get(problem.status, 1008), problem.title)
        else:
            await socket.send_denial_response(problem_response(problem))
    except WebSocketDisconnect:
        pass
    finally:
        if reader is not None:
            live.hub.leave(reader)


async def poll(live: ReaderContext, granted: Grant, last_event_id: str | None, wait: float) -> bytes:
    """Serve `GET /v1/poll`: return `{"events": […], "next": id, "gap": null or {"after": id, "detail": …}}` as JSON.

    Without an id to start from it answers immediately, with no event and the end of the log as `next`.

    Raises:
        Problem: 429 or 503 if a limit is reached, or the event stream cannot be read yet.
    """
    hub, reader = live.hub, Poll(granted)
    hub.admit(reader)
    try:
        await _ready(hub)
        if last_event_id is None:
            return _answer(None, hub.log.end_id)
        offset = await _find(hub.log, last_event_id)
        piece = None if offset is None else hub.log.read(offset, granted.channels)
        if piece is not None and not piece.shown and piece.complete:
            hub.join(reader)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait, granted.expires - time.time())):
                    await reader.woken.wait()
            piece = None if reader.gap else hub.log.read(piece.end, granted.channels)
        if piece is None:
            metrics.GAPS.inc()
            return _answer(None, hub.log.end_id, {"after": last_event_id[:MAX_ECHO_CHARACTERS], "detail": GAP})
        metrics.DELIVERIES.inc(len(piece.shown))
        return _answer(piece, hub.log.end_id if piece.complete else piece.shown[-1][0].id)
    finally:
        hub.leave(reader)


def _answer(piece: Piece | None, next_id: str, gap: dict[str, str] | None = None) -> bytes:
    events = b",".join(event.json(channel) for event, channel in piece.shown) if piece else b""
    return b'{"events":[%b],"next":%b,"gap":%b}' % (events, orjson.dumps(next_id), orjson.dumps(gap))


async def _ready(hub: Hub) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not hub.ready.is_set():
        if hub.draining or time.monotonic() > deadline:
            detail = "The notifier cannot read the event stream at the moment. Try again later."
            raise Problem(503, "Service Unavailable", detail, headers={"Retry-After": "5"})
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await hub.ready.wait()


async def _catch_up(hub: Hub, reader: Stream | Socket, last_event_id: str | None) -> None:
    """Replay the log to `reader` from its last id to the end, and join it to the hub."""
    try:
        await _ready(hub)
    except Problem as problem:
        reader.finish("closing" if hub.draining else "busy", problem.detail)
        return
    if last_event_id is None:
        hub.join(reader)
        reader.send_ready(hub.log.end_id)
        return
    offset = await _find(hub.log, last_event_id)
    while offset is not None and not reader.transport.is_closing():
        piece = hub.log.read(offset, reader.channels)
        if piece is None:
            break
        if piece.shown:
            reader.show(Run(piece.shown))
            metrics.DELIVERIES.inc(len(piece.shown))
        if piece.complete:
            hub.join(reader)  # no await since `read`, so no event is missed
            return
        offset = piece.end
        await _taken(reader)
    hub.join(reader)
    metrics.GAPS.inc()
    reader.send_gap(last_event_id[:MAX_ECHO_CHARACTERS], hub.log.end_id, GAP)


async def _find(log: Log, id: str) -> int | None:
    """Return the offset of `id`, or None if there is a gap."""
    deadline = time.monotonic() + LAG_SECONDS
    while (offset := log.find(id)) is None and log.is_ahead(id) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return offset


async def _taken(reader: Stream | Socket) -> None:
    """Wait until most of the written bytes are sent, or `reader` is evicted."""
    deadline = time.monotonic() + STALL_SECONDS
    while not reader.transport.is_closing() and reader.transport.get_write_buffer_size() > PIECE_BYTES // 4:
        if time.monotonic() > deadline:
            reader.evict()
        await asyncio.sleep(0.02)


def _forget_request(scope: Scope) -> None:
    """Drop query and headers of the request, which would be kept as long as the stream."""
    scope["query_string"] = b""
    scope["headers"].clear()
    scope.pop(RATE, None)


def _check_origin(origin: str | None, host: str | None, allowed: tuple[str, ...]) -> None:
    """Accept clients without an origin, our own pages, and pages of allowed sites (RFC 6455, 10.2).

    Raises:
        Problem: 403 for any other origin.
    """
    if origin is None or origin in allowed or urlsplit(origin).netloc == host:
        return
    raise Problem(
        403, "Forbidden", "Pages of this origin may not connect. The setting BELLHOP_LIVE_ORIGINS lists those that may."
    )


async def _first_message(socket: WebSocket) -> Asked:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_SECONDS):
            received = await socket.receive()
    except TimeoutError:
        raise Problem(401, "Unauthorized", 'No token came in time. Send {"token": …} as the first message.') from None
    if received["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(received.get("code", 1005))
    text = received.get("text") or received.get("bytes") or ""
    if len(text) > MAX_MESSAGE_BYTES:
        raise Problem(413, "Content Too Large", f"A message may have {MAX_MESSAGE_BYTES} bytes.")
    try:
        return _FirstMessage.model_validate_json(text).asked()
    except ValidationError:
        raise Problem(
            400,
            "Bad Request",
            'The first message must be {"token": …, "last_event_id"?: …, "channels"?: […]} as JSON.',
        ) from None


class _FirstMessage(Contract):
    token: str
    last_event_id: str | None = None
    channels: list[str] | None = None

    def asked(self) -> Asked:
        channels = None if self.channels is None else split_channels(self.channels)
        return Asked(self.token, self.last_event_id, channels)
