"""What happens around every request: it is counted, limited in rate and time, and answered whatever goes wrong.

One middleware, so that the headers are looked at once and what is sent passes one function:

    metrics   each answer is counted and timed by its route, also those that are given here
    rate      before anything of a body is read, so that a client that sends too much costs little
    deadline  a request that is not answered in time is answered 503, and what it set off is cancelled
    problems  what a route raises becomes a problem document; a crash is logged exactly once

Starlette's own `ServerErrorMiddleware` raises on after it has answered, so that uvicorn logs a second time and cuts the
connection; what is caught here never gets that far.
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
    """One request or WebSocket, and what is sent back."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limiter: Limiter) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limiter = limiter
        self.status = 0
        """HTTP status; 0 until the answer starts, and if the client disconnects before."""
        self.started = False
        self.overdue = False
        """The deadline has passed and was answered; what the application still sends is dropped."""
        self.loop = asyncio.get_running_loop()
        self.until = self.loop.time() + deadline.SECONDS
        self.extra = 0.0
        self.answering: asyncio.Task[None] | None = None
        self._task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]
        self._complete = self._refused = False

    async def receive(self) -> Message:
        """Return the next message of the client, whose time does not count."""
        if self._complete:
            return await self._receive()
        self.until = float("inf")
        message = await self._receive()
        self.until = self.loop.time() + deadline.SECONDS + self.extra
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send what the application says, unless the deadline was faster."""
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
                # Where nothing has checked a key: an unknown path, a body that is too large.
                self._limiter.count_rest(self._scope)
            except Problem as problem:
                await self.answer(problem)  # the request is counted now
                self._refused = True
                return
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._scope.get(RATE, ())]
        self.started = True
        await self._send(message)

    def look(self, now: float) -> None:
        """Answer, and cancel the rest, if it is time."""
        if self.started or self.overdue or now < self.until:
            return
        self.overdue = True
        self.answering = self.loop.create_task(self.answer(deadline.late()))
        self._task.cancel()

    def was_cancelled(self) -> bool:
        """Say whether the deadline, and nothing else, cancelled the application; the task goes on then."""
        return self.overdue and not self._task.uncancel()


class Edge:
    """The outermost middleware but for spans."""

    def __init__(
        self, app: ASGIApp, limiter: Limiter, exempt: frozenset[str], counted_by_route: frozenset[str] = frozenset()
    ) -> None:
        """`exempt`: paths that no limit counts. `counted_by_route`: those whose routes count by a token's subject.

        A request with a key is counted where the key is checked, in `auth.py`: before that, a flood of made-up keys
        would look like many clients.
        """
        self.app = app
        self.limiter = limiter
        self.exempt = exempt
        self.counted_by_route = counted_by_route
        # One timer for all requests costs less than a timer for each.
        self._live: set[Exchange] = set()
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
        self._live.add(exchange)
        if self._loop is not exchange.loop:
            self._loop = exchange.loop
            self._loop.call_later(deadline.TICK_SECONDS, self._tick, self._loop)
        try:
            await self._serve(scope, exchange)
        finally:
            self._live.discard(exchange)
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
            return  # a client that leaves is no fault of ours
        except asyncio.CancelledError:
            if exchange.was_cancelled():
                return
            # Shutting down took all the time it had, and this request is still at work.
            if not exchange.started and not exchange.overdue:
                await exchange.answer(_cut_short())
            raise
        except Exception as error:
            if exchange.overdue:
                return  # it was answered, and this comes of the cancellation
            if isinstance(error, Problem):
                if exchange.started:
                    raise
                await exchange.answer(error)
                return
            number = new_id()
            log.exception("%s %s failed, problem %s", scope.get("method", "WebSocket"), scope["path"], number)
            if exchange.started:
                # The answer is half out. Only a cut connection tells the client that the rest will never come.
                raise _AlreadyLogged from None
            await exchange.answer(_unexpected(number))

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for exchange in self._live:
            exchange.look(now)
        if self._live:
            loop.call_later(deadline.TICK_SECONDS, self._tick, loop)
        else:
            self._loop = None

    def _count(self, scope: Scope) -> None:
        """Count a request that brings no key, before anything is done for it; raise Problem 429."""
        if scope["path"] in self.exempt:
            self.limiter.exempt(scope)
        elif scope["path"] not in self.counted_by_route and not _has_key(scope):
            self.limiter.count_address(scope)


def _has_key(scope: Scope) -> bool:
    return scope["type"] == "http" and any(name == b"authorization" for name, _ in scope["headers"])


class _AlreadyLogged(Exception):
    """The answer was cut short; the reason stands in the log line before this one."""


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
        "This server made a mistake; the request may or may not have taken effect. If it goes on, give the number in"
        " `instance` to the operator of this server.",
        extensions={"instance": f"urn:uuid:{number}"},
    )
