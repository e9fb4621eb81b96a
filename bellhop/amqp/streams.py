"""Read a stream: every reader receives all messages, from any offset that retention has kept."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from bellhop.amqp import spans
from bellhop.amqp.connection import HEARTBEAT_SECONDS, MAX_BACK_OFF_SECONDS
from bellhop.amqp.errors import StreamReplaced
from bellhop.amqp.message import Delivery, from_headers
from bellhop.amqp.urls import split_urls
from bellhop.observe import traces
from bellhop.observe.logs import get_logger

QUIET_SECONDS = 5.0
"""If a stream delivers nothing for this long, its end is reached."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Position:
    """One message of the stream."""

    offset: int
    message: DeliveredMessage

    @property
    def identity(self) -> tuple[str | None, bytes]:
        """Identifies this message; another message at the same offset has another identity."""
        return self.message.header.properties.message_id, self.message.body


async def read_stream(
    url: str,
    queue: str,
    *,
    offset: int | str,
    name: str,
    prefetch: int = 500,
    connected: Callable[[bool], None] = lambda up: None,
    skipped: Callable[[int], None] = lambda offset: None,
) -> AsyncGenerator[Delivery, None]:
    """Yield the deliveries of stream `queue` without end; after a lost connection, continue after the last one.

    Args:
        url: amqp:// URL; several with commas between them, the nodes of one cluster, are tried in turn.
        queue: a queue of type stream.
        offset: the first message: an offset, "first", "next", "last", or an age such as "1h"
            (https://www.rabbitmq.com/docs/streams#consuming).
        name: shown in the management UI.
        prefetch: unacked messages, at most; RabbitMQ requires a limit on streams.
        connected: called with True when reading begins and the first messages, if any, have arrived, and with False
            when the connection is lost.
        skipped: called with the offset of each message that has no valid envelope and is therefore not yielded.
            A stream has no dead letters; the message stays in the stream.

    Raises:
        StreamReplaced: after a reconnect, the message that was read last is not in the stream.
    """
    failures = 0
    last: _Position | None = None
    for node in cycle(split_urls(url)):
        try:
            # `connect`, not `connect_robust`: the latter's iterator ends silently after a minute without a channel.
            connection = await aio_pika.connect(
                node, timeout=10, heartbeat=HEARTBEAT_SECONDS, client_properties={"connection_name": name}
            )
            async with connection:
                if last is not None:
                    # Read the last message again, to check that it is the same stream.
                    offset = last.offset
                    if not await _reaches(connection, queue, offset):
                        raise StreamReplaced(f"the stream {queue} ends before offset {offset}, which we have read")
                before = last
                channel = await connection.channel()
                positions = await _consume(channel, queue, offset, prefetch)
                connected(True)
                async for position in positions:
                    failures = 0
                    if before is not None and position.offset == before.offset:
                        if position.identity != before.identity:
                            raise StreamReplaced(f"the stream {queue} has another message at offset {offset} now")
                        continue
                    before, last = None, position
                    if (delivery := _decode(queue, position)) is None:
                        skipped(position.offset)
                        continue
                    if traces.tracer is not None:
                        spans.received(traces.tracer, delivery)
                    yield delivery
            raise ConnectionError("RabbitMQ ended the stream")
        except (AMQPError, ChannelInvalidStateError, OSError, TimeoutError) as error:
            connected(False)
            if failures == 0:
                log.warning("lost the stream; connecting again", stream=queue, reason=str(error) or repr(error))
            failures += 1
            await asyncio.sleep(random.uniform(1.0, min(MAX_BACK_OFF_SECONDS, 2.0**failures)))


async def _consume(channel: AbstractChannel, queue: str, offset: int | str, prefetch: int) -> AsyncIterator[_Position]:
    """Return the messages from `offset` on, each acked; on a stream an ack only grants credit for more messages.

    The iterator ends when the channel closes and when RabbitMQ cancels the consumer, which aio_pika's own one ignores.
    """
    received: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
    await channel.set_qos(prefetch_count=prefetch)
    channel.close_callbacks.add(lambda *_: received.put_nowait(None))
    # aio_pika's own consumer refuses properties of other publishers, and what it refuses is never acked.
    plain = await channel.get_underlay_channel()
    plain.on_consumer_cancel_callbacks.add(lambda _: received.put_nowait(None))
    await plain.basic_consume(queue, received.put, arguments={"x-stream-offset": offset})
    # RabbitMQ handles the methods of a channel in order, and sends the first messages before it handles the next
    # method. So this answer comes after them, however long RabbitMQ takes to read them.
    await channel.set_qos(prefetch_count=prefetch)

    async def acked() -> AsyncIterator[_Position]:
        known = offset - 1 if isinstance(offset, int) else None
        while (message := await received.get()) is not None:
            assert message.delivery_tag is not None
            await plain.basic_ack(message.delivery_tag, wait=False)
            found = _headers(message).get("x-stream-offset")
            if isinstance(found, int):
                known = found
            elif known is not None:
                known += 1  # its headers cannot be decoded (fields.py); a stream has no holes between two messages
            else:
                continue  # nor is it known where the stream begins
            yield _Position(known, message)

    return acked()


async def _reaches(connection: AbstractConnection, queue: str, offset: int) -> bool:
    """Return whether the stream has reached `offset`. RabbitMQ does not refuse an offset behind the end: it waits."""
    channel = await connection.channel()
    try:
        positions = await _consume(channel, queue, "last", prefetch=500)
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS) as quiet:
                async for position in positions:
                    if position.offset >= offset:
                        return True
                    quiet.reschedule(asyncio.get_running_loop().time() + QUIET_SECONDS)
        return False
    finally:
        await channel.close()


def _headers(message: DeliveredMessage) -> dict[str, Any]:
    return message.header.properties.headers or {}


def _decode(queue: str, position: _Position) -> Delivery | None:
    message = position.message
    headers = dict(_headers(message))
    try:
        envelope = from_headers(headers)
    except ValueError as error:
        log.warning("skipped a message of the stream", stream=queue, offset=position.offset, reason=str(error))
        return None
    return Delivery(
        body=message.body,
        envelope=envelope,
        attempt=1,
        headers=headers,
        queue=queue,
        exchange=message.exchange or "",
        routing_key=message.routing_key or "",
        redelivered=False,
        offset=position.offset,
    )
