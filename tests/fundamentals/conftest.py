"""What the tutorial needs: a connection, a publisher, and consumers that end with the test."""

from collections.abc import AsyncIterator
from typing import TypeVar

import pytest

from bellhop.amqp.batches import BatchHandler, BatchPuller
from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.message import Handler, Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from tests.support import wait_until
from tests.support.broker import Vhost

C = TypeVar("C", Consumer, BatchPuller)


class Tutorial:
    """One publisher, and as many consumers as a test wants."""

    def __init__(self, vhost: Vhost) -> None:
        self.vhost = vhost
        self.publisher: Publisher
        self._connections: list[Connection] = []
        self._consumers: list[Consumer | BatchPuller] = []

    async def connect(self, name: str) -> Connection:
        """Open a connection that closes with the test."""
        connection = Connection(self.vhost.amqp_url, f"bellhop/tutorial/1/{name}")
        await connection.start()
        assert await connection.wait_open(10)
        self._connections.append(connection)
        return connection

    async def publish(self, exchange: str, routing_key: str, *ids: str) -> None:
        """Publish one event for each id, and return when the broker has them all."""
        for event_id in ids:
            envelope = Envelope(type="lesson.taught", source="tutorial", id=event_id)
            await self.publisher.publish(exchange, routing_key, Message(b"{}", envelope))

    async def consume(self, queue: str, handler: Handler, prefetch: int = 1) -> Consumer:
        """Push: hand messages of `queue` to `handler`."""
        consumer = Consumer(await self.connect("consume"), self.publisher, queue, handler, prefetch=prefetch)
        return await self._begin(consumer)

    async def pull(self, queue: str, handler: BatchHandler, size: int, interval: float) -> BatchPuller:
        """Pull: give `handler` what lies ready every `interval` seconds."""
        connection = await self.connect("pull")
        return await self._begin(BatchPuller(connection, self.publisher, queue, handler, size=size, interval=interval))

    async def _begin(self, consumer: C) -> C:
        consumer.start()
        self._consumers.append(consumer)
        await wait_until(lambda: consumer.consuming, 10, "the consumer is subscribed")
        return consumer

    async def close(self) -> None:
        """End everything."""
        for consumer in self._consumers:
            await consumer.stop(2)
        for connection in self._connections:
            await connection.close()


@pytest.fixture
async def tutorial(vhost: Vhost) -> AsyncIterator[Tutorial]:
    tutorial = Tutorial(vhost)
    tutorial.publisher = Publisher(await tutorial.connect("publish"))
    await wait_until(lambda: tutorial.publisher.failure is None, 10, "the publisher is ready")
    yield tutorial
    await tutorial.close()
