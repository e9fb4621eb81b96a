"""What becomes of a delivery: the one place that acks, nacks, retries and buries.

    handler returns         -> ack
    Reject, undecodable     -> dead letter with the reason, then ack
    Retry, any other error  -> a rung of the retry ladder while attempts are left, else dead letter; then ack
    Defer                   -> a rung of the retry ladder, as the same attempt; then ack
    Hold                  -> held and tried again; after a long while nack, back to the queue
    shutting down           -> nack, back to the queue

Moving a message is a confirmed publish followed by an ack: a crash between the two makes a duplicate, which the
inbox absorbs, never a loss. Going back is always `basic.nack`, never `basic.reject`: only the latter counts towards
a quorum queue's delivery limit on RabbitMQ 4.3, and a restart of ours is no fault of the message.
"""

import traceback
from dataclasses import replace
from typing import Any

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from bellhop.amqp.errors import Defer, Hold, PublishError, Reject, Retry
from bellhop.amqp.message import ATTEMPT, MAX_ATTEMPT, OWNER, PREFIX, Delivery, Message, from_headers, plain
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import RetryPolicy, expiration_ms, rung_for
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.observe.logs import get_logger

DEAD_EXCHANGE = "dead"
REASON = "bellhop-reason"
ERROR = "bellhop-error"
QUEUE = "bellhop-queue"
DIED_AT = "bellhop-died-at"
OURS = frozenset({ATTEMPT, OWNER, REASON, ERROR, QUEUE, DIED_AT})
_MAX_ERROR = 4000
MAX_FOREIGN = 16 * 1024
"""Bytes of foreign headers that are kept: with a frame's limit of 128 KiB, a message must not grow out of it."""

log = get_logger(__name__)


def decode(queue: str, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Delivery:
    """Read a delivery. What does not carry our envelope is a `ValueError` that says what is missing."""
    headers: dict[str, Any] = properties.headers or {}
    attempt = headers.get(ATTEMPT, 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"header {ATTEMPT} must be a whole number from 1 to {MAX_ATTEMPT}")
    return Delivery(
        body=body,
        envelope=from_headers(headers),
        attempt=attempt,
        headers=headers,
        queue=queue,
        exchange=method.exchange,
        routing_key=method.routing_key,
        redelivered=method.redelivered,
    )


def undecodable(queue: str, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Delivery:
    """Wrap foreign bytes so that they can be buried like everything else."""
    type_ = properties.type if isinstance(properties.type, str) and properties.type.isprintable() else ""
    return Delivery(
        body=body,
        envelope=Envelope(type=type_ or "unknown", source="unknown"),
        attempt=1,
        headers=properties.headers or {},
        queue=queue,
        exchange=method.exchange,
        routing_key=method.routing_key,
        redelivered=method.redelivered,
    )


async def settle_failed(publisher: Publisher, policy: RetryPolicy, delivery: Delivery, error: Exception) -> None:
    """Give a delivery whose handler raised `error` its next place; the caller acks when this returns.

    Raises:
        Hold: it could not be moved, or the handler asked for it: the caller tries again.
    """
    if isinstance(error, Hold):
        raise error
    try:
        if isinstance(error, Defer):
            await _defer(publisher, delivery, error)
        else:
            await _retry_or_dead_letter(publisher, policy, delivery, error)
    except PublishError as trouble:
        raise Hold(f"could not move the message on: {trouble}") from trouble
    except Exception as trouble:  # a defect: handed back immediately, the message would come again without end
        raise Hold(f"could not move the message on: {trouble!r}") from trouble


async def _retry_or_dead_letter(
    publisher: Publisher, policy: RetryPolicy, delivery: Delivery, error: Exception
) -> None:
    rung = None
    if not isinstance(error, Reject):
        rung = policy.rung(delivery.attempt, error.after if isinstance(error, Retry) else None)
    if rung is None:
        await dead_letter(publisher, delivery, error)
        return
    log.info(
        "retrying later", queue=delivery.queue, id=delivery.envelope.id, attempt=delivery.attempt,
        rung=rung.name, reason=str(error),
    )  # fmt: skip
    message = _again(delivery, attempt=delivery.attempt + 1, expiration_ms=expiration_ms(rung))
    # The rung dead-letters to `work` with the routing key kept: the name of this queue.
    await publisher.publish(rung.name, delivery.queue, message)


async def _defer(publisher: Publisher, delivery: Delivery, signal: Defer) -> None:
    rung, milliseconds = rung_for(signal.after)
    message = _again(delivery, attempt=delivery.attempt, headers=dict(signal.headers), expiration_ms=milliseconds)
    await publisher.publish(rung.name, delivery.queue, message)


async def dead_letter(publisher: Publisher, delivery: Delivery, error: Exception) -> None:
    """Publish `delivery` to the dead letters, with what went wrong."""
    reason = "rejected" if isinstance(error, Reject) else "attempts-spent"
    log.warning(
        "dead letter", queue=delivery.queue, id=delivery.envelope.id, type=delivery.envelope.type,
        attempt=delivery.attempt, reason=reason, error=str(error),
    )  # fmt: skip
    expected = isinstance(error, Reject | Retry)
    text = str(error) if expected else "".join(traceback.format_exception(error))
    message = _again(
        delivery,
        attempt=delivery.attempt,
        headers={
            REASON: reason,
            ERROR: text[-_MAX_ERROR:],
            QUEUE: delivery.queue,
            DIED_AT: now().isoformat(),
        },
    )
    await publisher.publish(DEAD_EXCHANGE, delivery.queue, message)


def _again(delivery: Delivery, **changes: Any) -> Message:
    kept = foreign_headers(delivery.headers)
    message = Message(delivery.body, delivery.envelope, headers=kept)
    changes["headers"] = kept | changes.get("headers", {})
    return replace(message, **changes)


def foreign_headers(headers: dict[Any, Any]) -> dict[str, str | int | bool]:
    """Return the headers that are neither ours nor the broker's, as far as they can travel on.

    x-death and its kin are left out: RabbitMQ before 4.0 reads them on a republished message and may see a cycle.
    """
    kept: dict[str, str | int | bool] = {}
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or name in OURS or name.startswith(("x-", PREFIX)) or name == "traceparent":
            continue
        size += len(name) + len(str(value))
        if size <= MAX_FOREIGN:
            kept[name] = plain(value)
    return kept


def settle(channel: Channel, tag: int, *, ack: bool) -> None:
    """Ack or hand back. Delivery tags die with their channel: on a closed one there is nothing left to say."""
    if not channel.is_open:
        return
    if ack:
        channel.basic_ack(tag)
    else:
        channel.basic_nack(tag, requeue=True)
