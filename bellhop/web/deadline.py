"""The deadline of requests: one that is not answered within `SECONDS` is answered with 503 and `Retry-After`.

The time starts when the whole request has arrived; `protocol.py` limits the time until then. A route that waits by
design, such as a long poll, calls `extend`. At the deadline the request is cancelled, and the answer is sent without
waiting for that, because a driver may take long to be cancelled. Streams that have begun have no deadline.
"""

from starlette.types import Scope

from bellhop.web.problems import Problem

SECONDS = 9.0
RETRY_SECONDS = 5
TICK_SECONDS = 0.25
KEY = "bellhop.exchange"
"""The key of a scope's `Exchange` (edge.py), which has the deadline."""


def extend(scope: Scope, seconds: float) -> None:
    """Extend the deadline of the request of `scope` by `seconds`, because its client asked to wait."""
    exchange = scope.get(KEY)
    if exchange is not None:
        exchange.extra += seconds
        exchange.until += seconds


def late() -> Problem:
    """Return the 503 of a request whose deadline has passed."""
    return Problem(
        503,
        "Service Unavailable",
        f"This was not done within {SECONDS:g} seconds; it may or may not have taken effect. Send it again, with the"
        " same Idempotency-Key if it had one.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
