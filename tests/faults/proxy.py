"""A TCP proxy that makes a connection slow, broken or silent."""

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Proxy:
    """Set the fields while it runs; they hold for open connections, too."""

    target: int
    port: int = 0
    host: str = "127.0.0.1"
    """Of the target."""
    latency: tuple[float, float] = (0.0, 0.0)
    """Seconds at least and at most, for each piece in each direction."""
    piece: int = 65536
    """Bytes that are passed on at once."""
    passing: asyncio.Event = field(default_factory=asyncio.Event)
    """While cleared, everything is taken and nothing is passed on: what a cut cable looks like. Set at first."""
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    """While cleared, what the server says is kept back, and what it is told arrives. Set at first."""
    accepted: int = 0
    _pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.passing.set()
        self.answering.set()

    def reset(self) -> int:
        """Break off all connections (RST); return how many there were."""
        pairs = list(self._pairs)
        for pair in pairs:
            for writer in pair:
                writer.transport.abort()
        return len(pairs)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.target)
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        try:
            await asyncio.gather(
                self._pass(reader, far_writer, self.passing),
                self._pass(far_reader, writer, self.passing, self.answering),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(pair)
            self._tasks.discard(task)
            for each in pair:
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *gates: asyncio.Event) -> None:
        while data := await reader.read(self.piece):
            for gate in gates:
                await gate.wait()
            if self.latency[1]:
                await asyncio.sleep(random.uniform(*self.latency))
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def stop(self) -> None:
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Cable:
    """A proxy with a thread of its own, so that it goes on while a test blocks its event loop."""

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxying = proxy_to(target, host)
        self._proxy = self._do(self._proxying.__aenter__())
        self.port = self._proxy.port

    def cut(self) -> None:
        """Pass nothing on, and say so to nobody."""
        self._loop.call_soon_threadsafe(self._proxy.passing.clear)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(self._proxy.passing.set)

    def close(self) -> None:
        self._do(self._proxying.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextmanager
def cable_to(port: int, host: str = "127.0.0.1") -> Iterator[Cable]:
    """Lead a cable to `port` of `host` until the block ends."""
    cable = Cable(port, host)
    try:
        yield cable
    finally:
        cable.close()


@asynccontextmanager
async def proxy_to(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """Run a proxy in front of `port` until the block ends."""
    proxy = Proxy(port, host=host)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.stop()
