"""A proxy before RabbitMQ that makes it slow at one place: between its answer to basic.consume and the messages."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_METHOD = 1
_CONSUME_OK = struct.pack(">HH", 60, 21)


@asynccontextmanager
async def slow_to_deliver(host: str, port: int, seconds: float) -> AsyncIterator[int]:
    """Give the port of a proxy that waits `seconds` after each basic.consume-ok."""
    copying: set[asyncio.Task[None]] = set()

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        broker, to_broker = await asyncio.open_connection(host, port)
        for copy in (_copy(client, to_broker), _copy_frames(broker, to_client, seconds)):
            copying.add(asyncio.create_task(copy))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in copying:
            task.cancel()
        await asyncio.gather(*copying, return_exceptions=True)


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


async def _copy_frames(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    """Copy frame by frame (AMQP 0-9-1, 4.2.3)."""
    try:
        while True:
            head = await source.readexactly(7)
            kind, _, size = struct.unpack(">BHL", head)
            rest = await source.readexactly(size + 1)
            target.write(head + rest)
            await target.drain()
            if kind == _METHOD and rest.startswith(_CONSUME_OK):
                await asyncio.sleep(seconds)
    except asyncio.IncompleteReadError:
        pass
    finally:
        target.close()
