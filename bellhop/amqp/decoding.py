"""Decode bytes from the broker into a `Delivery`. Any client with the right to publish may have written them."""

from typing import Any

from pika.spec import Basic, BasicProperties

from bellhop.amqp.message import ATTEMPT, MAX_ATTEMPT, Delivery, from_headers
from bellhop.contracts.envelope import Envelope


def receive(queue: str, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Delivery:
    """Return the delivery; if it cannot be decoded, `error` has the reason. Never raises."""
    try:
        return decode(queue, method, properties, body)
    except Exception as error:  # any error of a decoder: a requeued message would be redelivered without end
        return undecodable(queue, method, properties, body, f"undecodable: {error}")


def decode(queue: str, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> Delivery:
    """Return the delivery.

    Raises:
        ValueError: a header of the envelope is missing or invalid; the text names it.
    """
    headers: dict[str, Any] = properties.headers or {}
    attempt = headers.get(ATTEMPT, 1)
    if not isinstance(attempt, int) or isinstance(attempt, bool) or not 1 <= attempt <= MAX_ATTEMPT:
        raise ValueError(f"header {ATTEMPT} must be a whole number from 1 to {MAX_ATTEMPT}")
    return _delivery(queue, method, properties, body, from_headers(headers), attempt)


def undecodable(queue: str, method: Basic.Deliver, properties: BasicProperties, body: bytes, error: str) -> Delivery:
    """Return foreign bytes as a delivery that can become a dead letter."""
    type_ = properties.type if isinstance(properties.type, str) and properties.type.isprintable() else ""
    envelope = Envelope(type=type_ or "unknown", source="unknown")
    return _delivery(queue, method, properties, body, envelope, 1, error)


def _delivery(
    queue: str,
    method: Basic.Deliver,
    properties: BasicProperties,
    body: bytes,
    envelope: Envelope,
    attempt: int,
    error: str | None = None,
) -> Delivery:
    return Delivery(
        body=body,
        envelope=envelope,
        attempt=attempt,
        headers=properties.headers or {},
        queue=queue,
        exchange=method.exchange,
        routing_key=method.routing_key,
        redelivered=method.redelivered,
        error=error,
    )
