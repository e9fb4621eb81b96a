"""Every request is answered in time, whatever hangs behind it: 503 with `Retry-After` after `SECONDS`.

The time begins when the whole request is here; until then the client is the slow one, and `protocol.py` watches it. A
route that waits on purpose, such as a long poll, says for how long: `extend`. What the deadline ends is cancelled, and
the answer does not wait for that: a driver may take its time even to be cancelled.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellhop.web.problems import Problem, problem_response

SECONDS = 9.0
RETRY_SECONDS = 5
TICK_SECONDS = 0.25
_KEY = "bellhop.deadline"


def extend(scope: Scope, seconds: float) -> None:
    """Let the request of `scope` take `seconds` more: its client asked to wait."""
    deadline = scope.get(_KEY)
    if deadline is not None:
        deadline.extra += seconds
        deadline.until += seconds


class Deadline:
    """Answers what nobody else answers in time. Streams that have begun are not touched."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # One timer for all requests costs less than a timer for each.
        self._live: set[_Request] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = scope[_KEY] = _Request(receive, send)
        self._live.add(request)
        if self._loop is not request.loop:
            self._loop = request.loop
            self._loop.call_later(TICK_SECONDS, self._tick, self._loop)
        try:
            await self.app(scope, request.receive, request.send)
        except asyncio.CancelledError:
            if not request.overdue or request.task.uncancel():
                raise
        except Exception:
            if not request.overdue:  # else it was answered, and this comes of the cancellation
                raise
        finally:
            self._live.discard(request)
            if request.answering is not None:
                await request.answering

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for request in self._live:
            request.look(now)
        if self._live:
            loop.call_later(TICK_SECONDS, self._tick, loop)
        else:
            self._loop = None


class _Request:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[object] = asyncio.current_task()  # type: ignore[assignment]
        self.until = self.loop.time() + SECONDS
        self.extra = 0.0
        self.overdue = False
        self._complete = self._started = False
        self.answering: asyncio.Task[None] | None = None

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        self.until = float("inf")  # the client's time, not ours
        message = await self._receive()
        self.until = self.loop.time() + SECONDS + self.extra
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if self.overdue:
            return
        self._started = True
        await self._send(message)

    def look(self, now: float) -> None:
        """Answer, and cancel the rest, if it is time."""
        if self._started or self.overdue or now < self.until:
            return
        self.overdue = True
        self.answering = self.loop.create_task(self._answer())
        self.task.cancel()

    async def _answer(self) -> None:
        await problem_response(_late())({"type": "http"}, self._receive, self._send)


def _late() -> Problem:
    return Problem(
        503,
        "Service Unavailable",
        f"This was not done within {SECONDS:g} seconds; it may or may not have taken effect. Send it again, with the"
        " same Idempotency-Key if it had one.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
