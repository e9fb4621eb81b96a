"""Confirmed publishes a second by one process, ours beside aio-pika's in the same run; then consuming and pulling.

    python -m bench.publish                      # 40,000 messages of 300 bytes, a window of 1,000

publish   each message mandatory, persistent and confirmed by a quorum queue, 1,000 unconfirmed at most
consume   one handler and one ack for each message
pull      one handler and one ack for each batch
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import aio_pika
import uvloop

from bellhop.amqp.batches import BatchPuller
from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.message import Delivery, Message, to_headers
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bench import stage

QUEUE = "mail.normal"
BODY = b"x" * 300
WINDOW = 1_000
TARGETS = {"publish": 15_000, "pull": 25_000}


async def many(count: int, publish: Callable[[], Awaitable[object]]) -> float:
    """Publish `count` messages, `WINDOW` on their way at once; return how many a second."""

    async def some() -> None:
        for _ in range(count // WINDOW):
            await publish()

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(WINDOW)))
    return count / (time.perf_counter() - began)


async def ours(url: str, count: int) -> float:
    """Publish with the publisher of `bellhop.amqp`."""
    connection = Connection(url, "bench")
    publisher = Publisher(connection, window=WINDOW)
    await opened(connection, publisher)

    async def publish() -> None:
        await publisher.publish("work", QUEUE, Message(BODY, Envelope(type="mail.requested", source="/bench")))

    try:
        return await many(count, publish)
    finally:
        await connection.close()


async def theirs(url: str, count: int) -> float:
    """Publish the same with aio-pika."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange("work")

        async def publish() -> None:
            headers = to_headers(Message(BODY, Envelope(type="mail.requested", source="/bench")))
            message = aio_pika.Message(
                BODY, headers=headers, message_id=os.urandom(8).hex(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await exchange.publish(message, QUEUE, mandatory=True)

        return await many(count, publish)


async def consume(url: str, count: int) -> float:
    """Take `count` messages one by one; return how many a second."""
    connection = Connection(url, "bench")
    publisher = Publisher(connection)
    seen = Seen(count)

    async def handle(_delivery: Delivery) -> None:
        seen.more(1)

    await opened(connection, publisher)
    consumer = Consumer(connection, publisher, QUEUE, handle, prefetch=500)
    rate = await seen.rate(consumer.start)
    await consumer.stop(5)
    await connection.close()
    return rate


async def pull(url: str, count: int) -> float:
    """Take `count` messages in batches; return how many a second."""
    connection = Connection(url, "bench")
    publisher = Publisher(connection)
    seen = Seen(count)

    async def handle(deliveries: list[Delivery]) -> None:
        seen.more(len(deliveries))

    await opened(connection, publisher)
    puller = BatchPuller(connection, publisher, QUEUE, handle, size=2_000, interval=0.2)
    rate = await seen.rate(puller.start)
    await puller.stop(5)
    await connection.close()
    return rate


class Seen:
    """Counts until enough were seen."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._count = 0
        self._enough = asyncio.Event()

    def more(self, count: int) -> None:
        """Count."""
        self._count += count
        if self._count >= self._wanted:
            self._enough.set()

    async def rate(self, start: Callable[[], None]) -> float:
        """Call `start`, wait, and return how many were seen a second."""
        began = time.perf_counter()
        start()
        async with asyncio.timeout(60):
            await self._enough.wait()
        return self._count / (time.perf_counter() - began)


async def opened(connection: Connection, publisher: Publisher) -> None:
    """Wait until the publisher can publish."""
    await connection.start()
    while publisher.failure is not None:  # noqa: ASYNC110 - the channel opens a moment after the connection
        await asyncio.sleep(0.01)


async def measure(url: str, count: int) -> dict[str, float]:
    """Return each figure; the two publishers take turns, so that whatever else runs troubles both alike."""
    found: dict[str, float] = {}
    for _ in range(2):
        found["publish"] = max(found.get("publish", 0), await ours(url, count // 2))
        found["aio-pika"] = max(found.get("aio-pika", 0), await theirs(url, count // 2))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=40_000)
    count = parser.parse_args().messages
    print(stage.heading())
    with stage.broker() as place:
        rates = uvloop.run(measure(place.amqp_url, count))
    with stage.broker() as place:  # a queue with nothing in it but ours
        for name, take in (("consume", consume), ("pull", pull)):
            uvloop.run(ours(place.amqp_url, count))
            rates[name] = uvloop.run(take(place.amqp_url, count))
    for name, rate in rates.items():
        target = f"  (target {TARGETS[name]:,})" if name in TARGETS else ""
        print(f"{name:10}{rate:10,.0f}/s{target}")
    print(f"{'ratio':10}{rates['publish'] / rates['aio-pika']:10.1f} x aio-pika")


if __name__ == "__main__":
    main()
