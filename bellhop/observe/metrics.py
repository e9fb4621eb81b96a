"""Metrics of all services (prometheus_client). Those of one service are in its `metrics.py`."""

import asyncio
import platform
import time
from importlib.metadata import version

from prometheus_client import Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

REQUESTS = Histogram(
    "bellhop_http_request_seconds",
    "Time from the head of a request to the end of its answer; _count is the number of requests",
    ["method", "route", "status"],
    buckets=_BUCKETS,
)
LAG = Histogram(
    "bellhop_event_loop_lag_seconds",
    "How much later than asked for the event loop woke a sleeper: everything else waits as long",
    buckets=_BUCKETS,
)
BUILD = Gauge("bellhop_build_info", "Always 1; the labels say what runs", ["service", "version", "python"])

UNMATCHED = "unmatched"
_LAG_INTERVAL = 0.5


def describe_build(service: str) -> None:
    """Publish which build of `service` this is."""
    BUILD.labels(service, version("bellhop"), platform.python_version()).set(1)


async def watch_loop() -> None:
    """Measure the lag of the running event loop until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _LAG_INTERVAL
        await asyncio.sleep(_LAG_INTERVAL)
        LAG.observe(max(0.0, clock() - due))


class WatchedSend:
    """An ASGI `send` that records the status of the answer."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        """HTTP status; 0 until the answer starts, and if the client disconnects before."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class RequestMetrics:
    """Counts and times HTTP requests, labelled with the template of their route: the number of paths has no bound."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        # Cached: finding a child by its labels costs more than all other steps here.
        self._children: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        watched = WatchedSend(send)
        began = time.perf_counter()
        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", UNMATCHED)
            labels = (scope["method"], route, watched.status)
            child = self._children.get(labels)
            if child is None:
                child = self._children[labels] = REQUESTS.labels(*labels)
            child.observe(time.perf_counter() - began)
