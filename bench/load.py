"""A small HTTP load generator: keep-alive connections that each send the next request when the answer is there."""

import asyncio
import time
from dataclasses import dataclass, field

import uvloop


@dataclass
class Result:
    """What a run measured; latencies in milliseconds."""

    seconds: float
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Successful requests a second."""
        return sum(count for status, count in self.statuses.items() if status < 300) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class _Client(asyncio.Protocol):
    def __init__(self, request: bytes, until: float, result: Result, done: "asyncio.Future[None]") -> None:
        self._request, self._until, self._result, self._done = request, until, result, done
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < head_end + 4 + length:
            return
        status = int(head[9:12])
        self._buffer = b""
        now = time.perf_counter()
        self._result.latencies.append((now - self._began) * 1000)
        self._result.statuses[status] = self._result.statuses.get(status, 0) + 1
        if now < self._until:
            self._send()
        else:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP/1.1 request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def run(port: int, payload: bytes, *, connections: int, seconds: float) -> Result:
    """Send `payload` over `connections` connections for so many seconds."""

    async def main() -> Result:
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        result = Result(0)
        waiting = []
        for _ in range(connections):
            done: asyncio.Future[None] = loop.create_future()
            waiting.append(done)
            await loop.create_connection(
                lambda done=done: _Client(payload, began + seconds, result, done), "127.0.0.1", port
            )
        await asyncio.wait(waiting)
        result.seconds = time.perf_counter() - began
        return result

    return uvloop.run(main())
