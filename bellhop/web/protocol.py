"""uvicorn's HTTP protocol with limits on unfinished requests, which no application can set.

uvicorn does not limit the time and the size of an unfinished request: a client that sends one byte every few seconds
keeps its connection without limit, and a header without end fills the memory. Here a request that is not complete in
time is answered with 408, an oversized head with 414 or 431, and what is not HTTP with 400. These answers are problem
documents, and close the connection. A request that arrives in one piece, as most do, starts no timer.
"""

import asyncio
from enum import Enum
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bellhop.web.problems import Problem, problem_response
from bellhop.web.request_limits import Limits

_LINGER_SECONDS = 1.0
_CHUNKING = 8
"""In chunks of one byte, a body takes six times its size on the network."""


class _Phase(Enum):
    """What the client is sending."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class _Refusal(Exception):
    """The request is refused; `LimitedProtocol._problem` has the reason."""


class LimitedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with limits on the head and on the time that a request may take to arrive."""

    limits: ClassVar[Limits] = Limits()
    draining: ClassVar[bool] = False
    """The server is about to close its connections: each answer has `Connection: close`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._phase = _Phase.NOTHING
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_of: _Phase | None = None
        self._head_size = 0
        self._received = 0  # bytes of a request that is not complete
        self._problem: Problem | None = None
        self._finished = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer: a connection on which nothing arrives is also closed."""
        super().connection_made(transport)
        self._set_deadline(_Phase.HEAD)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._set_deadline(_Phase.NOTHING)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, then start or stop the timer for the rest of the request."""
        if self._finished:
            return
        if self._phase is _Phase.NOTHING and self.timeout_keep_alive_task is not None:
            # uvicorn stops its own timer at any byte, also at one that does not begin a request.
            self._phase = _Phase.HEAD
        super().data_received(data)
        if self._phase is not _Phase.NOTHING and not self._finished:
            self._received += len(data)
            self._check_received()
        if self._finished:
            return
        awaited = self._phase
        if awaited is _Phase.NOTHING and self.timeout_keep_alive_task is None and self._answered():
            # The end of a body that arrived after its answer also stopped uvicorn's timer.
            awaited = _Phase.HEAD
        if awaited is not self._deadline_of:
            self._set_deadline(awaited)

    def _check_received(self) -> None:
        # Only here are bytes counted that the parser buffers, such as one endless header, and bytes that the
        # application does not read, such as the body of a request that was already refused.
        if self._phase is _Phase.HEAD and self._received > self.limits.head:
            self._problem = self._head_too_large()
            self.send_400_response("")
        elif self._received > self.limits.head + _CHUNKING * self.limits.largest_body:
            self._problem = Problem(413, "Content Too Large", "The body is far too large. Send less.")
            self.send_400_response("")

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over; WebSockets have their own timeouts."""
        self._finished = True
        self._set_deadline(_Phase.NOTHING)
        super().handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._phase = _Phase.HEAD
        self._head_size = 0
        self._received = 0

    def on_url(self, url: bytes) -> None:
        """Add a part of the request target."""
        super().on_url(url)
        if len(self.url) > self.limits.url:
            raise self._refuse(414, "URI Too Long", f"The URL is longer than {self.limits.url} bytes. Shorten it.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add one header."""
        super().on_header(name, value)
        self._head_size += len(name) + len(value)
        if self._head_size > self.limits.head or len(self.headers) > self.limits.headers:
            self._problem = self._head_too_large()
            raise _Refusal

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        if not self.url.startswith(b"/"):
            raise self._refuse(400, "Bad Request", "The request target must be a path that begins with a slash.")
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            # RFC 9112, 3.2: two servers could interpret it in different ways.
            raise self._refuse(400, "Bad Request", "A request must have exactly one Host header. Send one.")
        self._phase = _Phase.BODY
        super().on_headers_complete()
        if self.draining:
            self.close_after_answer()

    def on_message_complete(self) -> None:
        """Note that the request is complete."""
        self._phase = _Phase.NOTHING
        super().on_message_complete()

    def close_after_answer(self) -> None:
        """Set `Connection: close` in the answer to the current request, unless that answer has begun."""
        if self.cycle is not None and not self.cycle.response_started:  # a WebSocket has no cycle
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not passed to the application, and close the connection."""
        del msg
        problem = self._problem or Problem(
            400, "Bad Request", "This is not an HTTP/1.1 request. Check how the client makes its requests."
        )
        self._finished = True
        self._set_deadline(_Phase.NOTHING)
        cycle = self.cycle
        if cycle is not None and cycle.response_started and (self._phase is _Phase.BODY or not cycle.response_complete):
            # This request is already answered, or part of the answer to the previous one is sent: the client would
            # misinterpret what is written now.
            self.transport.close()
            return
        body = bytes(problem_response(problem).body)
        self.transport.write(
            STATUS_LINE[problem.status]
            + b"content-type: application/problem+json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            + body
        )
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        # Closing immediately, with unread bytes of the client, would reset the connection, and the answer could be
        # lost: close our direction only, and let the client read the answer (RFC 9112, 9.6).
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _head_too_large(self) -> Problem:
        return Problem(
            431,
            "Request Header Fields Too Large",
            f"The headers are more than {self.limits.head} bytes, or more than {self.limits.headers}. Send fewer.",
        )

    def _refuse(self, status: int, title: str, detail: str) -> _Refusal:
        self._problem = Problem(status, title, detail)
        return _Refusal()

    def _set_deadline(self, phase: _Phase) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._deadline_of = phase
        if phase is not _Phase.NOTHING:
            seconds = self.limits.head_seconds if phase is _Phase.HEAD else self.limits.body_seconds
            self._deadline = self.loop.call_later(seconds, self._on_timeout)

    def _answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _on_timeout(self) -> None:
        if self._phase is _Phase.NOTHING or (self._phase is _Phase.BODY and self._answered()):
            self.transport.close()
            return
        part = "head" if self._phase is _Phase.HEAD else "body"
        self._problem = Problem(
            408, "Request Timeout", f"The {part} of the request did not arrive in time. Send it in one go."
        )
        self.send_400_response("")
