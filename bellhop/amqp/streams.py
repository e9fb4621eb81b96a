"""Read a stream: every reader gets its own copy of everything, from any offset that is still kept."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from itertools import cycle

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aiormq.exceptions import AMQPError

from bellhop.amqp.connection import HEARTBEAT_SECONDS, MAX_BACK_OFF_SECONDS
from bellhop.amqp.message import Delivery, from_headers
from bellhop.amqp.urls import split_urls
from bellhop.observe.logs import get_logger

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
    """
    failures = 0
    for node in cycle(split_urls(url)):
        try:
            # `connect`, not `connect_robust`: the latter's iterator ends silently after a minute without a channel.
            connection = await aio_pika.connect(
                node, timeout=10, heartbeat=HEARTBEAT_SECONDS, client_properties={"connection_name": name}
            )
            async with connection:
                channel = await connection.channel()
                await channel.set_qos(prefetch_count=prefetch)
                stream = await channel.get_queue(queue, ensure=False)
                arguments = {"x-stream-offset": offset}
                # Not `async with`: on leaving it would nack what it holds, and a stream ends the connection for that.
                messages = stream.iterator(arguments=arguments)
                await messages.consume()
                connected(True)
                async for message in messages:
                    failures = 0
                    await message.ack()  # a stream's ack is only credit for more
                    position = message.headers["x-stream-offset"]
                    offset = int(position) + 1  # type: ignore[arg-type]
                    if (delivery := _decode(queue, message, offset - 1)) is not None:
                        yield delivery
            raise ConnectionError("RabbitMQ ended the stream")
        except (AMQPError, OSError, TimeoutError) as error:
            connected(False)
            if failures == 0:
                log.warning("lost the stream; connecting again", stream=queue, reason=str(error) or repr(error))
            failures += 1
            await asyncio.sleep(random.uniform(1.0, min(MAX_BACK_OFF_SECONDS, 2.0**failures)))


def _decode(queue: str, message: AbstractIncomingMessage, offset: int) -> Delivery | None:
    headers = dict(message.headers)
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
