"""Reading a stream, and noticing that it is another one than before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import pytest

from bellhop.amqp.errors import StreamReplaced
from bellhop.amqp.message import Message, to_headers
from bellhop.amqp.streams import read_stream
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from tests.support import wait_until
from tests.support.broker import Vhost

QUEUE = "notifier.log"


class Reader:
    """Reads in the background."""

    def __init__(self, vhost: Vhost) -> None:
        self.bodies: list[bytes] = []
        self.up = asyncio.Event()
        self._url = vhost.amqp_url
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        deliveries = read_stream(self._url, QUEUE, offset="first", name="test", connected=self._connected)
        async for delivery in deliveries:
            self.bodies.append(delivery.body)

    def _connected(self, up: bool) -> None:
        (self.up.set if up else self.up.clear)()

    async def has(self, count: int) -> None:
        await wait_until(lambda: len(self.bodies) >= count, 20, f"{count} messages are read")


@asynccontextmanager
async def reading(vhost: Vhost) -> AsyncIterator[Reader]:
    """Read until the block ends."""
    reader = Reader(vhost)
    try:
        yield reader
    finally:
        reader.reading.cancel()
        await asyncio.wait([reader.reading])


async def put(vhost: Vhost, *bodies: bytes) -> None:
    """Publish to the stream."""
    channel = await vhost.channel()
    exchange = await channel.get_exchange("notifications", ensure=False)
    for body in bodies:
        headers = to_headers(Message(body, Envelope(type="notification.raised", source="/test")))
        await exchange.publish(aio_pika.Message(body, headers=headers, message_id=new_id()), "")
    await channel.close()


async def test_after_a_cut_it_goes_on_behind_the_last(vhost: Vhost) -> None:
    """Each message once, also those that came while nobody was connected."""
    async with reading(vhost) as reader:
        await put(vhost, b"0", b"1")
        await reader.has(2)
        await wait_until(lambda: vhost.close_connections(), 20, "the connection is cut")
        await wait_until(lambda: not reader.up.is_set(), 20, "the reader has noticed")
        await put(vhost, b"2", b"3")
        await reader.has(4)
        assert reader.bodies == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("length", [1, 5], ids=["shorter", "longer"])
async def test_a_stream_that_was_made_anew_is_noticed(vhost: Vhost, length: int) -> None:
    """Whether the new one has reached the old one's end or not: its offsets name other messages."""
    async with reading(vhost) as reader:
        await put(vhost, b"0", b"1", b"2")
        await reader.has(3)
        await vhost.management.delete(f"/api/queues/{vhost.name}/{QUEUE}")
        await vhost.apply_topology()
        await put(vhost, *(b"new" for _ in range(length)))
        with pytest.raises(StreamReplaced):
            await asyncio.wait_for(reader.reading, 30)
        assert reader.bodies == [b"0", b"1", b"2"]
