"""A client of a live stream that comes back by itself, as a browser's EventSource does."""

import asyncio
import contextlib
import json
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Follower:
    """A browser: it reads the stream, and comes back with its last id whenever the connection ends."""

    port: int
    token: str
    seen: Counter[str] = field(default_factory=Counter)
    """How often each title was shown, over all connections."""
    gaps: int = 0
    connections: int = 0
    last_id: str | None = None
    live: asyncio.Event = field(default_factory=asyncio.Event)
    pause: float | None = 0.2
    """Seconds between two connections; None: as long as the stream says, as a browser does."""
    retry: float = 3.0
    """What the stream said last, in seconds."""
    refusals: list[str] = field(default_factory=list)
    """Status lines other than 200, each of which would be final for a browser."""

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, EOFError, TimeoutError):
                await self._follow()
            self.live.clear()
            await asyncio.sleep(self.retry if self.pause is None else self.pause)

    async def _follow(self) -> None:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            resume = f"Last-Event-ID: {self.last_id}\r\n" if self.last_id is not None else ""
            writer.write(
                f"GET /v1/stream HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {self.token}\r\n{resume}\r\n".encode()
            )
            status = await reader.readline()
            if b" 200 " not in status:
                if status:
                    self.refusals.append(status.decode().strip())
                return
            self.connections += 1
            type_ = text = id_ = None
            while True:
                async with asyncio.timeout(40):  # a sign of life comes every 15 s
                    line = await reader.readline()
                if not line:
                    return
                name, _, value = line.decode().rstrip("\r\n").partition(": ")
                if name == "event":
                    type_ = value
                elif name == "id":
                    id_ = value
                elif name == "data":
                    text = value
                elif name == "retry":
                    self.retry = int(value) / 1000
                elif line in (b"\n", b"\r\n"):  # only now it counts: an event that was cut off never happened
                    if id_ is not None:
                        self.last_id = id_
                    if type_ is not None and text is not None:
                        self._take(type_, text)
                    type_ = text = id_ = None
        finally:
            writer.close()

    def _take(self, type_: str, text: str) -> None:
        document = json.loads(text)
        if type_ == "notification.raised":
            self.seen[document["data"]["title"]] += 1
        elif type_ == "gap":
            self.gaps += 1
        elif type_ == "ready":
            self.live.set()
