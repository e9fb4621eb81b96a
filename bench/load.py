"""A small HTTP load generator.

`run` is a closed loop: each connection sends its next request when the answer is there, which finds the highest rate.
`steady` is an open loop: requests leave at their time, whether earlier ones are answered or not, which finds how long
something takes at a rate; a closed loop would wait with a server that stalls, and not count the stall.
"""

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import uvloop

from bench.stage import percentile


@dataclass
class Result:
    """What runs measured; latencies in milliseconds."""

    seconds: float = 0.0
    statuses: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Successful requests a second."""
        return sum(count for status, count in self.statuses.items() if status < 300) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        return percentile(self.latencies, share)

    def note(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.latencies.append(seconds * 1000)
        self.statuses[status] = self.statuses.get(status, 0) + 1


class _Client(asyncio.Protocol):
    """One keep-alive connection with one request on its way at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> "asyncio.Future[int]":
        """Write `request`; the future is the status of its answer, or ConnectionError."""
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

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
        self._buffer = b""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the server closed the connection"))


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP/1.1 request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def run(
    port: int, requests: bytes | Sequence[bytes], *, connections: int, seconds: float, into: Result | None = None
) -> Result:
    """Send `requests`, again and again, over `connections` connections for so many seconds; add to `into`."""
    result = into or Result()
    endless = itertools.cycle([requests] if isinstance(requests, bytes) else requests)

    async def one(until: float) -> None:
        _, client = await asyncio.get_running_loop().create_connection(_Client, "127.0.0.1", port)
        while (began := time.perf_counter()) < until:
            status = await client.send(next(endless))
            result.note(status, time.perf_counter() - began)
        client.transport.close()

    async def main() -> None:
        began = time.perf_counter()
        await asyncio.gather(*(one(began + seconds) for _ in range(connections)))
        result.seconds += time.perf_counter() - began

    uvloop.run(main())
    return result


@dataclass(slots=True)
class Arrival:
    """One request of an open loop; times of `time.perf_counter`."""

    due: float
    sent: float = 0.0
    answered: float = 0.0
    status: int = 0


async def steady(port: int, requests: Iterable[bytes], rate: float) -> list[Arrival]:
    """Send `requests` at `rate` a second; return when all are answered. A free connection is used, or a new one made.

    Raises:
        ConnectionError: the server closed a connection with a request on it.
    """
    free: list[_Client] = []
    arrivals: list[Arrival] = []

    async def send(payload: bytes, arrival: Arrival) -> None:
        if free:
            client = free.pop()
        else:
            _, client = await asyncio.get_running_loop().create_connection(_Client, "127.0.0.1", port)
        arrival.sent = time.perf_counter()
        arrival.status = await client.send(payload)
        arrival.answered = time.perf_counter()
        free.append(client)

    async with asyncio.TaskGroup() as group:
        for payload, due in zip(requests, _times(rate), strict=False):
            while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 - nothing but the clock is waited for
                await asyncio.sleep(left)
            arrivals.append(Arrival(due))
            group.create_task(send(payload, arrivals[-1]))
    for client in free:
        client.transport.close()
    return arrivals


def _times(rate: float) -> Iterator[float]:
    began = time.perf_counter()
    return (began + number / rate for number in itertools.count())
