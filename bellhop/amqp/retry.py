"""When to try again: a ladder of queues, each of which hands its messages back after its own time.

A delay never holds a message unacked, and never mixes with a longer one: each rung is a queue of its own, because
RabbitMQ expires messages only at the head of a queue (https://www.rabbitmq.com/docs/ttl).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rung:
    """One delay queue; its exchange has the same name."""

    name: str
    seconds: int


LADDER = (
    Rung("retry.5s", 5),
    Rung("retry.30s", 30),
    Rung("retry.2m", 120),
    Rung("retry.10m", 600),
    Rung("retry.1h", 3600),
    Rung("retry.6h", 21_600),
)

# A message may leave its rung up to this share early, so that what failed together does not come back together.
# The queue's own TTL is the ceiling, and no message can be held up by the one before it for longer than the spread.
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how fast, a message is tried again."""

    attempts: int = 8
    """Attempts in all, the first included. With the ladder of six rungs, 8 attempts span about 13 hours."""

    def rung(self, attempt: int, after: float | None = None) -> Rung | None:
        """Return the rung to wait on after failed attempt number `attempt` (from 1); None when they are spent.

        `after` is the least number of seconds to wait, where the other side asked for it; what is longer than the
        last rung waits there and is asked again.
        """
        if attempt >= self.attempts:
            return None
        step = min(attempt, len(LADDER)) - 1
        if after is not None:
            while step < len(LADDER) - 1 and LADDER[step].seconds * (1 - JITTER) < after:
                step += 1
        return LADDER[step]


DEFAULT = RetryPolicy()


def expiration_ms(rung: Rung) -> int:
    """Return how long a message waits on `rung`, with jitter, in milliseconds."""
    return round(rung.seconds * 1000 * random.uniform(1 - JITTER, 1))


def rung_for(seconds: float) -> tuple[Rung, int]:
    """Return the rung on which a message can wait `seconds`, and its expiration there in milliseconds.

    What is longer than the last rung waits there for as long as that lets it. A rung hands its messages back in
    order, so one may come later than asked, by no more than its rung is long.
    """
    rung = next((each for each in LADDER if each.seconds >= seconds), LADDER[-1])
    return rung, max(1, round(min(seconds, rung.seconds) * 1000))
