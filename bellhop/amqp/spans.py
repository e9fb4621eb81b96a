"""Spans of messages, if traces are enabled: one for each publish, and one for each delivery, its child.

OpenTelemetry's conventions for messaging with RabbitMQ:
https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from bellhop.amqp.message import Delivery, Message
from bellhop.observe import traces

Send = Callable[[str, str, Message], "asyncio.Future[None]"]


def publishing(tracer: Tracer, send: Send, exchange: str, routing_key: str, message: Message) -> "asyncio.Future[None]":
    """Call `send` within a span that ends with the confirm; the message carries its context.

    A publish outside of a trace gets no span: a loop that publishes each second would make more traces than clients do.
    """
    if message.envelope.traceparent is None and traces.current() is None:
        return send(exchange, routing_key, message)
    span = tracer.start_span(
        f"publish {exchange}:{routing_key}",
        _parent(message.envelope.traceparent),
        SpanKind.PRODUCER,
        _about("publish", "send", f"{exchange}:{routing_key}", routing_key)
        | {"messaging.message.body.size": len(message.body), "cloudevents.event_id": message.envelope.id},
    )

    def ended(future: "asyncio.Future[None]") -> None:
        if future.cancelled():
            traces.failed(span, "cancelled")
        elif (error := future.exception()) is not None:
            traces.failed(span, type(error).__name__)
        span.end()

    try:
        future = send(
            exchange,
            routing_key,
            replace(message, envelope=replace(message.envelope, traceparent=traces.traceparent_of(span))),
        )
    except Exception as error:
        traces.failed(span, type(error).__name__)
        span.end()
        raise
    future.add_done_callback(ended)
    return future


def traced(handler: Callable[[Delivery], Awaitable[None]]) -> Callable[[Delivery], Awaitable[None]]:
    """Return `handler` with a span around each delivery; `handler` itself if traces are disabled."""
    tracer = traces.tracer
    if tracer is None:
        return handler

    async def handle(delivery: Delivery) -> None:
        context = traces.context_of(delivery.envelope.traceparent)
        name = f"process {delivery.queue}"
        with traces.surrounding(tracer.start_span(name, context, SpanKind.CONSUMER, _of(delivery, "process"))):
            await handler(delivery)

    return handle


def traced_batch(
    queue: str, handler: Callable[[list[Delivery]], Awaitable[None]]
) -> Callable[[list[Delivery]], Awaitable[None]]:
    """Return `handler` with a span around each batch, linked to the span of each of its messages that has one."""
    tracer = traces.tracer
    if tracer is None:
        return handler

    async def handle(deliveries: list[Delivery]) -> None:
        contexts = [
            trace.get_current_span(traces.context_of(delivery.envelope.traceparent)).get_span_context()
            for delivery in deliveries
        ]
        links = [Link(context) for context in contexts if context.is_valid]
        if not links:
            await handler(deliveries)
            return
        span = tracer.start_span(
            f"process {queue}",
            Context(),
            SpanKind.CONSUMER,
            _about("process", "process", queue) | {"messaging.batch.message_count": len(deliveries)},
            links,
        )
        with traces.surrounding(span):
            await handler(deliveries)

    return handle


def received(tracer: Tracer, delivery: Delivery) -> None:
    """Make a span for the receipt of a message of a stream; its handling by readers is not traced."""
    context = traces.context_of(delivery.envelope.traceparent)
    tracer.start_span(f"receive {delivery.queue}", context, SpanKind.CONSUMER, _of(delivery, "receive")).end()


def _parent(traceparent: str | None) -> Context | None:
    """Return the parent of a publish span: None for the current span, or the context that the message carries.

    A message that the outbox publishes later has no current span.
    """
    ours = traces.current()
    if traceparent is None or (ours is not None and ours[3:35] == traceparent[3:35]):
        return None
    return traces.context_of(traceparent)


def _of(delivery: Delivery, operation: str) -> dict[str, AttributeValue]:
    destination = f"{delivery.exchange}:{delivery.routing_key}:{delivery.queue}"
    return _about(operation, operation, destination, delivery.routing_key) | {
        "messaging.message.body.size": len(delivery.body),
        "cloudevents.event_id": delivery.envelope.id,
        "cloudevents.event_type": delivery.envelope.type,
        "bellhop.attempt": delivery.attempt,
    }


def _about(name: str, type_: str, destination: str, routing_key: str | None = None) -> dict[str, AttributeValue]:
    about: dict[str, AttributeValue] = {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": name,
        "messaging.operation.type": type_,
        "messaging.destination.name": destination,
    }
    if routing_key:
        about["messaging.rabbitmq.destination.routing_key"] = routing_key
    return about
