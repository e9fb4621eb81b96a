"""Every request is answered in time, whatever hangs behind it: 503 with `Retry-After` after `SECONDS`.

The time begins when the whole request is here; until then the client is the slow one, and `protocol.py` watches it. A
route that waits on purpose, such as a long poll, says for how long: `extend`. What the deadline ends is cancelled, and
the answer does not wait for that: a driver may take its time even to be cancelled. Streams that have begun are not
touched.
"""

from starlette.types import Scope

from bellhop.web.problems import Problem

SECONDS = 9.0
RETRY_SECONDS = 5
TICK_SECONDS = 0.25
KEY = "bellhop.exchange"
"""Where a scope has its `Exchange` (edge.py), whose deadline it is."""


def extend(scope: Scope, seconds: float) -> None:
    """Let the request of `scope` take `seconds` more: its client asked to wait."""
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
