"""Bellhop's own AMQP headers, and which other headers are kept when a message is published again."""

from dataclasses import replace
from typing import Any

from bellhop.amqp.message import ATTEMPT, OWNER, PREFIX, Delivery, Message, plain

REASON = "bellhop-reason"
"""Of a dead letter: `rejected` or `attempts-spent`."""
ERROR = "bellhop-error"
QUEUE = "bellhop-queue"
DEAD_LETTERED_AT = "bellhop-died-at"
OURS = frozenset({ATTEMPT, OWNER, REASON, ERROR, QUEUE, DEAD_LETTERED_AT})
MAX_FOREIGN_BYTES = 16 * 1024
"""Bytes of foreign headers that are kept, at most: all headers must fit into one frame of 128 KiB."""


def forward(delivery: Delivery, *, headers: dict[str, Any] | None = None, **changes: Any) -> Message:
    """Return the message of `delivery` to be published again, with further `headers` and `changes` of its fields."""
    message = Message(
        delivery.body,
        delivery.envelope,
        attempt=delivery.attempt,
        headers=foreign_headers(delivery.headers) | (headers or {}),
    )
    return replace(message, **changes)


def foreign_headers(headers: dict[Any, Any]) -> dict[str, str | int | bool]:
    """Return the headers that are neither ours nor the broker's, up to `MAX_FOREIGN_BYTES` bytes.

    `x-death` and the broker's other headers are left out: RabbitMQ before 4.0 reads them on a republished message and
    may see a cycle.
    """
    kept: dict[str, str | int | bool] = {}
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or name in OURS or name.startswith(("x-", PREFIX)) or name == "traceparent":
            continue
        size += len(name) + len(str(value))
        if size <= MAX_FOREIGN_BYTES:
            kept[name] = plain(value)
    return kept
