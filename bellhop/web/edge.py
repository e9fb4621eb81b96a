"""The outermost middleware: it counts each request, limits rate and time, and answers each error.

It is one middleware, so that the headers are read one time and all answers pass one function:

    metrics   each answer is counted and timed by its route, also the answers of this middleware
    rate      before the body is read, so that a client over its rate costs little
    deadline  a request that is not answered in time is answered with 503, and its handler is cancelled
    problems  an exception of a route becomes a problem document; an unexpected one is logged exactly once

Starlette's own `ServerErrorMiddleware` raises the exception again after its answer, so that uvicorn logs it a second
time and closes the connection. Exceptions that are caught here do not reach it.
"""

import asyncio
import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from bellhop.contracts.base import new_id
from bellhop.observe.metrics import observe_request
from bellhop.web import deadline
from bellhop.web.problems import Problem, problem_response
from bellhop.web.rate_limit import RATE, Limiter

log = logging.getLogger(__name__)


class Exchange:
    """One request or WebSocket, and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limiter: Limiter) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limiter = limiter
        self.status = 0
        """HTTP status; 0 until the answer starts, and if the client disconnects before."""
        self.started = False
        self.overdue = False
        """The deadline has passed and a 503 was sent; what the application still sends is dropped."""
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + deadline.SECONDS
        self.extra = 0.0
        self.answering: asyncio.Task[None] | None = None
        self._task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]
        self._complete = self._refused = False

    async def receive(self) -> Message:
        """Return the next message of the client; the time until the request is complete does not count."""
        if self._complete:
            return await self._receive()
        self.until = float("inf")
        message = await self._receive()
        self.until = self.loop.time() + deadline.SECONDS + self.extra
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message of the application, unless the deadline has passed."""
        if not self.overdue:
            await self._pass(message)

    async def answer(self, problem: Problem) -> None:
        """Send a problem document."""
        await problem_response(problem)(self._scope, self._receive, self._pass)

    async def _pass(self, message: Message) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start":
            try:
                # Requests whose key was not checked: an unknown path, a body that is too large.
                self._limiter.count_rest(self._scope)
            except Problem as problem:
                await self.answer(problem)  # the request is counted now
                self._refused = True
                return
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._scope.get(RATE, ())]
        self.started = True
        await self._send(message)

    def check_deadline(self, now: float) -> None:
        """If the deadline has passed, send a 503 and cancel the application."""
        if self.started or self.overdue or now < self.until:
            return
        self.overdue = True
        self.answering = self.loop.create_task(self.answer(deadline.late()))
        self._task.cancel()

    def was_cancelled(self) -> bool:
        """Return whether only the deadline cancelled the application; then the task continues."""
        return self.overdue and not self._task.uncancel()


class Edge:
    """The outermost middleware, except for spans."""

    def __init__(
        self, app: ASGIApp, limiter: Limiter, exempt: frozenset[str], counted_by_route: frozenset[str] = frozenset()
    ) -> None:
        """`exempt`: paths that no limit counts. `counted_by_route`: paths whose routes count by a token's subject.

        A request with a key is counted after the key is checked, in `auth.py`: otherwise many invented keys would
        count as many clients.
        """
        self.app = app
        self.limiter = limiter
        self.exempt = exempt
        self.counted_by_route = counted_by_route
        # One timer for all requests costs less than a timer for each.
        self._running: set[Exchange] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        exchange = Exchange(scope, receive, send, self.limiter)
        if scope["type"] != "http":
            await self._serve(scope, exchange)
            return
        scope[deadline.KEY] = exchange
        self._running.add(exchange)
        if self._loop is not exchange.loop:
            self._loop = exchange.loop
            self._loop.call_later(deadline.TICK_SECONDS, self._tick, self._loop)
        try:
            await self._serve(scope, exchange)
        finally:
            self._running.discard(exchange)
            try:
                if exchange.answering is not None:
                    await exchange.answering
            finally:
                route = getattr(scope.get("route"), "path", None)
                observe_request(scope["method"], route, exchange.status, time.perf_counter() - began)

    async def _serve(self, scope: Scope, exchange: Exchange) -> None:
        try:
            self._count(scope)
            await self.app(scope, exchange.receive, exchange.send)
        except (ClientDisconnect, WebSocketDisconnect):
            return  # a client that disconnects is not an error
        except asyncio.CancelledError:
            if exchange.was_cancelled():
                return
            # The shutdown timeout has passed, and this request is still running.
            if not exchange.started and not exchange.overdue:
                await exchange.answer(_cut_short())
            raise
        except Exception as error:
            if exchange.overdue:
                return  # a 503 was sent, and the exception was caused by the cancellation
            if isinstance(error, Problem):
                if exchange.started:
                    raise
                await exchange.answer(error)
                return
            number = new_id()
            log.exception("%s %s failed, problem %s", scope.get("method", "WebSocket"), scope["path"], number)
            if exchange.started:
                # Part of the answer is sent. The connection must be closed, so that the client detects the failure.
                raise _AlreadyLogged from None
            await exchange.answer(_unexpected(number))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for exchange in self._running:
            exchange.check_deadline(now)
        if self._running:
            loop.call_later(deadline.TICK_SECONDS, self._tick, loop)
        else:
            self._loop = None

    def _count(self, scope: Scope) -> None:
        """Count a request without a key, before it is handled; raise Problem 429."""
        if scope["path"] in self.exempt:
            self.limiter.exempt(scope)
        elif scope["path"] not in self.counted_by_route and not _has_key(scope):
            self.limiter.count_address(scope)


def _has_key(scope: Scope) -> bool:
    return scope["type"] == "http" and any(name == b"authorization" for name, _ in scope["headers"])


class _AlreadyLogged(Exception):
    """The answer is incomplete; the log line before this one has the reason."""


def _cut_short() -> Problem:
    return Problem(
        503,
        "Service Unavailable",
        "This server is shutting down; the request may or may not have taken effect. Send it again.",
        headers={"Retry-After": "1"},
    )


def _unexpected(number: str) -> Problem:
    return Problem(
        500,
        "Internal Server Error",
        "The request failed because of a defect of this server; it may or may not have taken effect. If it fails again,"
        " give the number in `instance` to the operator of this server.",
        extensions={"instance": f"urn:uuid:{number}"},
    )
