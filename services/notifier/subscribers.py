"""The three kinds of reader, as the hub sees them.

A stream and a socket write straight to the transport of their connection. ASGI's `send` cannot do what is needed: it
tells nobody how much still waits for a slow reader, it cannot cut a connection off, and it costs a coroutine for each
delivery. So a subscriber has no buffer and no task of its own; the transport's buffer is the one that is bounded.
"""

import asyncio
import socket
from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from services.notifier import metrics
from services.notifier.admission import Grant
from services.notifier.come_back import ComeBack
from services.notifier.frames import (
    LAST_CHUNK,
    Run,
    http_chunk,
    message,
    sse_message,
    websocket_close,
    websocket_text,
)
from services.notifier.hub import Ping

LINGER_SECONDS = 10.0
"""So long may the last words take to reach a reader."""
DEAD_SECONDS = 60
"""A reader whose machine acknowledges nothing for so long is gone."""

# Why a socket is closed; 3000, 3003 and 3008 are IANA's for 401, 403 and a time-out, 1012 and 1013 say "come again".
CLOSE_CODES = {"expired": 3000, "evicted": 3008, "closing": 1012, "busy": 1013}

_TRANSPORT = "bellhop.transport"


def keep_transport(app: ASGIApp) -> ASGIApp:
    """Note down the transport of each connection in its scope, before anything wraps uvicorn's `send`."""

    # No coroutine of its own: it would live as long as the stream.
    def keep(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope[_TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        return app(scope, receive, send)

    return keep


def transport_of(scope: Scope) -> asyncio.Transport:
    """Return the transport of a connection, set up for a long life.

    Raises:
        RuntimeError: the server is not uvicorn, which alone has its transport where `keep_transport` looks.
    """
    transport: asyncio.Transport | None = scope[_TRANSPORT]
    if transport is None:
        raise RuntimeError("live streams need uvicorn, with nothing between it and the notifier's app")
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)
    return transport


class _Connection:
    """What a stream and a socket have in common."""

    __slots__ = ("__weakref__", "channels", "expires", "limit", "subject", "transport")

    def __init__(self, transport: asyncio.Transport, grant: Grant, limit: int) -> None:
        """`limit`: unsent bytes at which the reader is cut off."""
        self.transport = transport
        self.subject = grant.subject
        self.channels = grant.channels
        self.expires = grant.expires
        self.limit = limit

    def finish(self, type: str, detail: str) -> None:
        """Say why it ends and close as soon as that is sent."""
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(self._last_words(type, detail))
        transport.close()
        asyncio.get_running_loop().call_later(LINGER_SECONDS, transport.abort)

    def _write(self, data: bytes) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > self.limit:
            self.evict()

    def evict(self) -> None:
        """Cut off a reader that is too slow."""
        if not self.transport.is_closing():
            metrics.EVICTIONS.inc()
            self.finish("evicted", "You read too slowly. Resume from the last id you have.")

    def _last_words(self, type: str, detail: str) -> bytes:
        raise NotImplementedError


class Stream(_Connection):
    """A response with Server-Sent Events, whose head is already out."""

    __slots__ = ("_come_back",)

    def __init__(self, transport: asyncio.Transport, grant: Grant, limit: int, come_back: ComeBack) -> None:
        """`come_back` says when a client that is told to connect again should do so."""
        super().__init__(transport, grant, limit)
        self._come_back = come_back

    def show(self, run: Run) -> None:
        self._write(run.sse_chunk)

    def ping(self, ping: Ping) -> None:
        self._write(ping.sse_chunk)

    def tell_ready(self, id: str) -> None:
        self._write(http_chunk(sse_message("ready", id, channels=self.channels)))

    def tell_gap(self, after: str, id: str, detail: str) -> None:
        self._write(http_chunk(sse_message("gap", id, after=after, detail=detail)))

    def _last_words(self, type: str, detail: str) -> bytes:
        retry = b"retry: %d\n" % self._come_back.milliseconds()
        return http_chunk(retry + sse_message(type, detail=detail)) + LAST_CHUNK


class Socket(_Connection):
    """An open WebSocket."""

    __slots__ = ()

    def show(self, run: Run) -> None:
        self._write(run.websocket)

    def ping(self, ping: Ping) -> None:
        self._write(ping.websocket)

    def tell_ready(self, id: str) -> None:
        self._write(websocket_text(message("ready", id, channels=self.channels)))

    def tell_gap(self, after: str, id: str, detail: str) -> None:
        self._write(websocket_text(message("gap", id, after=after, detail=detail)))

    def _last_words(self, type: str, detail: str) -> bytes:
        return websocket_text(message(type, detail=detail)) + websocket_close(CLOSE_CODES[type], detail)


class Poll:
    """A request that waits for something to be there; it then reads the log itself."""

    __slots__ = ("channels", "expires", "gap", "subject", "woken")

    def __init__(self, grant: Grant) -> None:
        self.subject = grant.subject
        self.channels = grant.channels
        self.expires = grant.expires
        self.woken = asyncio.Event()
        self.gap = False
        """The log was begun anew, so that the offset this poll waits behind means nothing any more."""

    def show(self, run: Run) -> None:
        self.woken.set()

    def ping(self, ping: Ping) -> None:
        """Nothing: an answer comes soon enough."""

    def tell_gap(self, after: str, id: str, detail: str) -> None:
        self.gap = True
        self.woken.set()

    def finish(self, type: str, detail: str) -> None:
        self.woken.set()
