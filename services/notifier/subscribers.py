"""The three kinds of subscribers of the hub.

A stream and a socket write directly to the transport of their connection. ASGI's `send` does not report how many bytes
are unsent, cannot abort a connection, and costs a coroutine for each delivery. So a subscriber has no buffer and no
task of its own; the transport's buffer is bounded instead.
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
"""Limit of sending the last message; then the connection is aborted."""
DEAD_SECONDS = 60
"""A connection is lost when the reader's machine has acknowledged nothing for this long."""

# Close codes: 3000, 3003 and 3008 are IANA's for 401, 403 and a timeout; after 1012 and 1013 a client reconnects.
CLOSE_CODES = {"expired": 3000, "evicted": 3008, "closing": 1012, "busy": 1013}

_TRANSPORT = "bellhop.transport"


def keep_transport(app: ASGIApp) -> ASGIApp:
    """Store the transport of each connection in its scope, before middleware wraps uvicorn's `send`."""

    # Not a coroutine, which would exist as long as the stream.
    def keep(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        scope[_TRANSPORT] = getattr(getattr(send, "__self__", None), "transport", None)
        return app(scope, receive, send)

    return keep


def transport_of(scope: Scope) -> asyncio.Transport:
    """Return the transport of a connection, configured for a long-lived stream.

    Raises:
        RuntimeError: `keep_transport` found none, because the server is not uvicorn.
    """
    transport: asyncio.Transport | None = scope[_TRANSPORT]
    if transport is None:
        raise RuntimeError("live streams need uvicorn, with nothing between it and the notifier's app")
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_SECONDS * 1000)
    return transport


class _Connection:
    """Base of streams and sockets."""

    __slots__ = ("__weakref__", "channels", "expires", "limit", "subject", "transport")

    def __init__(self, transport: asyncio.Transport, grant: Grant, limit: int) -> None:
        """`limit`: unsent bytes at which the reader is evicted."""
        self.transport = transport
        self.subject = grant.subject
        self.channels = grant.channels
        self.expires = grant.expires
        self.limit = limit

    def finish(self, type: str, detail: str) -> None:
        """Send why it ends, and close when that is sent."""
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
        """Abort the connection of a reader that is too slow."""
        if not self.transport.is_closing():
            metrics.EVICTIONS.inc()
            self.finish("evicted", "You read too slowly. Resume from the last id you have.")

    def _last_words(self, type: str, detail: str) -> bytes:
        raise NotImplementedError


class Stream(_Connection):
    """A response with Server-Sent Events, whose head has been sent."""

    __slots__ = ("_come_back",)

    def __init__(self, transport: asyncio.Transport, grant: Grant, limit: int, come_back: ComeBack) -> None:
        """`come_back`: delays for clients that have to reconnect."""
        super().__init__(transport, grant, limit)
        self._come_back = come_back

    def show(self, run: Run) -> None:
        self._write(run.sse_chunk)

    def ping(self, ping: Ping) -> None:
        self._write(ping.sse_chunk)

    def send_ready(self, id: str) -> None:
        self._write(http_chunk(sse_message("ready", id, channels=self.channels)))

    def send_gap(self, after: str, id: str, detail: str) -> None:
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

    def send_ready(self, id: str) -> None:
        self._write(websocket_text(message("ready", id, channels=self.channels)))

    def send_gap(self, after: str, id: str, detail: str) -> None:
        self._write(websocket_text(message("gap", id, after=after, detail=detail)))

    def _last_words(self, type: str, detail: str) -> bytes:
        return websocket_text(message(type, detail=detail)) + websocket_close(CLOSE_CODES[type], detail)


class Poll:
    """A long poll that waits for an event, and then reads the log itself."""

    __slots__ = ("channels", "expires", "gap", "subject", "woken")

    def __init__(self, grant: Grant) -> None:
        self.subject = grant.subject
        self.channels = grant.channels
        self.expires = grant.expires
        self.woken = asyncio.Event()
        self.gap = False
        """Whether the log was cleared, so that the offset of this poll is invalid."""

    def show(self, run: Run) -> None:
        self.woken.set()

    def ping(self, ping: Ping) -> None:
        """Does nothing: the poll answers before it would need a ping."""

    def send_gap(self, after: str, id: str, detail: str) -> None:
        self.gap = True
        self.woken.set()

    def finish(self, type: str, detail: str) -> None:
        self.woken.set()
