"""When to try again: retry queues, each of which hands its messages back after its own delay.

A delay never holds a message unacked, and never mixes with a longer one: each delay is a queue of its own, because
RabbitMQ expires messages only at the head of a queue (https://www.rabbitmq.com/docs/ttl).
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryQueue:
    """A queue whose messages return to their own queue after `seconds`; its exchange has the same name."""

    name: str
    seconds: int


RETRY_QUEUES = (
    RetryQueue("retry.5s", 5),
    RetryQueue("retry.30s", 30),
    RetryQueue("retry.2m", 120),
    RetryQueue("retry.10m", 600),
    RetryQueue("retry.1h", 3600),
    RetryQueue("retry.6h", 21_600),
)

# A message may leave its retry queue up to this share early, so that messages that failed together do not come back
# together. The queue's own TTL is the upper bound; no message waits for the one before it for longer than that share.
JITTER = 0.2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how fast, a message is tried again."""

    attempts: int = 8
    """Attempts in all, the first included. With six retry queues, 8 attempts span about 13 hours."""

    def retry_queue(self, attempt: int, after: float | None = None) -> RetryQueue | None:
        """Return where to wait after failed attempt number `attempt` (from 1); None when the attempts are spent.

        `after` is the least number of seconds to wait, where the other side asked for it. A longer time than that of
        the last retry queue is not waited for.
        """
        if attempt >= self.attempts:
            return None
        step = min(attempt, len(RETRY_QUEUES)) - 1
        if after is not None:
            while step < len(RETRY_QUEUES) - 1 and RETRY_QUEUES[step].seconds * (1 - JITTER) < after:
                step += 1
        return RETRY_QUEUES[step]


DEFAULT = RetryPolicy()


def expiration_ms(retry_queue: RetryQueue) -> int:
    """Return how long a message waits on `retry_queue`, with jitter, in milliseconds."""
    return round(retry_queue.seconds * 1000 * random.uniform(1 - JITTER, 1))


def retry_queue_for(seconds: float) -> tuple[RetryQueue, int]:
    """Return the retry queue in which a message can wait `seconds`, and its expiration there in milliseconds.

    A longer time than that of the last retry queue is cut to it. A retry queue hands its messages back in order, so a
    message may return later than asked, by at most the time of its retry queue.
    """
    retry_queue = next((each for each in RETRY_QUEUES if each.seconds >= seconds), RETRY_QUEUES[-1])
    return retry_queue, max(1, round(min(seconds, retry_queue.seconds) * 1000))
