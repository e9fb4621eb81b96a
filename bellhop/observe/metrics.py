"""Metrics of all services (prometheus_client). Those of one service are in its `metrics.py`."""

import asyncio
import platform
from importlib.metadata import version

from prometheus_client import Gauge, Histogram

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
_LAG_INTERVAL_SECONDS = 0.5


def describe_build(service: str) -> None:
    """Publish which build of `service` this is."""
    BUILD.labels(service, version("bellhop"), platform.python_version()).set(1)


async def watch_loop() -> None:
    """Measure the lag of the running event loop until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _LAG_INTERVAL_SECONDS
        await asyncio.sleep(_LAG_INTERVAL_SECONDS)
        LAG.observe(max(0.0, clock() - due))


# Cached: finding a child by its labels costs more than to observe.
_children: dict[tuple[str, str, int], Histogram] = {}


def observe_request(method: str, route: str | None, status: int, seconds: float) -> None:
    """Count and time a request, labelled with the template of its route: the number of paths has no bound."""
    labels = (method, route or UNMATCHED, status)
    child = _children.get(labels)
    if child is None:
        child = _children[labels] = REQUESTS.labels(*labels)
    child.observe(seconds)
