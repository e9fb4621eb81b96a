"""Read a stream: every reader gets its own copy of everything, from any offset that is still kept."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from itertools import cycle

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import AMQPError, ChannelInvalidStateError

from bellhop.amqp import spans
from bellhop.amqp.connection import HEARTBEAT_SECONDS, MAX_BACK_OFF_SECONDS
from bellhop.amqp.errors import StreamReplaced
from bellhop.amqp.message import Delivery, from_headers
from bellhop.amqp.urls import split_urls
from bellhop.observe import traces
from bellhop.observe.logs import get_logger

QUIET_SECONDS = 5.0
"""A stream that has not shown its end for so long, while somebody asks for it, has no more."""

log = get_logger(__name__)


async def read_stream(
    url: str,
    queue: str,
    *,
    offset: int | str,
    name: str,
    prefetch: int = 500,
    connected: Callable[[bool], None] = lambda up: None,
) -> AsyncGenerator[Delivery, None]:
    """Yield the deliveries of stream `queue`, for ever; after a lost connection it goes on behind the last one.

    Args:
        url: amqp:// URL; several with commas between them, the nodes of one cluster, are tried in turn.
        queue: a queue of type stream.
        offset: where to begin: an offset, "first", "next", "last", or an age such as "1h"
            (https://www.rabbitmq.com/docs/streams#consuming).
        name: shown in the management UI.
        prefetch: messages on their way to us at most; RabbitMQ demands a limit on streams.
        connected: called with True as soon as the stream is being read, with False when that ends.

    A message without our envelope is skipped with a log line: a stream has no dead letters, and stays as it is.

    Raises:
        StreamReplaced: after a lost connection, what we read last is not in the stream.
    """
    failures = 0
    last: AbstractIncomingMessage | None = None
    for node in cycle(split_urls(url)):
        try:
            # `connect`, not `connect_robust`: the latter's iterator ends silently after a minute without a channel.
            connection = await aio_pika.connect(
                node, timeout=10, heartbeat=HEARTBEAT_SECONDS, client_properties={"connection_name": name}
            )
            async with connection:
                if last is not None:
                    # Once more from the last one on: only that shows whether it is the stream that we know.
                    offset = _offset(last)
                    if not await _reaches(connection, queue, offset):
                        raise StreamReplaced(f"the stream {queue} ends before offset {offset}, which we have read")
                before = last
                channel = await connection.channel()
                messages = await _consume(channel, queue, offset, prefetch)
                connected(True)
                async for message in messages:
                    failures = 0
                    if before is not None and _offset(message) == _offset(before):
                        if (message.message_id, message.body) != (before.message_id, before.body):
                            raise StreamReplaced(f"the stream {queue} has another message at offset {offset} now")
                        continue
                    before, last = None, message
                    if (delivery := _decode(queue, message)) is not None:
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


async def _consume(
    channel: AbstractChannel, queue: str, offset: int | str, prefetch: int
) -> AsyncIterator[AbstractIncomingMessage]:
    """Return the messages from `offset` on, each acked, which on a stream is only credit for more.

    They end with the channel, and when RabbitMQ cancels the consumer: of that the library's own iterator says nothing.
    """
    received: asyncio.Queue[AbstractIncomingMessage | None] = asyncio.Queue()
    await channel.set_qos(prefetch_count=prefetch)
    channel.close_callbacks.add(lambda *_: received.put_nowait(None))
    (await channel.get_underlay_channel()).on_consumer_cancel_callbacks.add(lambda _: received.put_nowait(None))
    stream = await channel.get_queue(queue, ensure=False)
    await stream.consume(received.put, arguments={"x-stream-offset": offset})

    async def acked() -> AsyncIterator[AbstractIncomingMessage]:
        while (message := await received.get()) is not None:
            await message.ack()
            yield message

    return acked()


async def _reaches(connection: AbstractConnection, queue: str, offset: int) -> bool:
    """Say whether `offset` is in the stream, or was: asked for one behind its end, RabbitMQ only waits for it."""
    channel = await connection.channel()
    try:
        messages = await _consume(channel, queue, "last", prefetch=500)
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_SECONDS) as patience:
                async for message in messages:
                    if _offset(message) >= offset:
                        return True
                    patience.reschedule(asyncio.get_running_loop().time() + QUIET_SECONDS)
        return False
    finally:
        await channel.close()


def _offset(message: AbstractIncomingMessage) -> int:
    return int(message.headers["x-stream-offset"])  # type: ignore[arg-type]


def _decode(queue: str, message: AbstractIncomingMessage) -> Delivery | None:
    headers, offset = dict(message.headers), _offset(message)
    try:
        envelope = from_headers(headers)
    except ValueError as error:
        log.warning("skipped a message of the stream", stream=queue, offset=offset, reason=str(error))
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
        offset=offset,
    )
