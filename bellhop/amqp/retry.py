"""Retry queues: each returns its messages to their own queue after its delay.

There is one queue for each delay, because RabbitMQ expires messages only at the head of a queue
(https://www.rabbitmq.com/docs/ttl). A message that waits is not held unacked.
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
    """How often, and after which delays, a message is retried."""

    attempts: int = 8
    """Attempts in all, the first included. With six retry queues, 8 attempts span about 13 hours."""

    def retry_queue(self, attempt: int, after: float | None = None) -> RetryQueue | None:
        """Return the retry queue after failed attempt number `attempt` (from 1); None when the attempts are spent.

        `after`: seconds to wait, at least, where the server asked for it; cut to the delay of the last retry queue.
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
    """Return the expiration of a message in `retry_queue`, with jitter, in milliseconds."""
    return round(retry_queue.seconds * 1000 * random.uniform(1 - JITTER, 1))


def retry_queue_for(seconds: float) -> tuple[RetryQueue, int]:
    """Return the retry queue in which a message can wait `seconds`, and its expiration there in milliseconds.

    A longer time is cut to the delay of the last retry queue. A retry queue returns its messages in order, so a message
    may return later than asked, by at most the delay of its retry queue.
    """
    retry_queue = next((each for each in RETRY_QUEUES if each.seconds >= seconds), RETRY_QUEUES[-1])
    return retry_queue, max(1, round(min(seconds, retry_queue.seconds) * 1000))
