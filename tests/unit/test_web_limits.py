"""Token buckets, without a clock, and the sizes of bodies."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from bellhop.web.problems import Problem
from bellhop.web.rate_limit import Buckets, Rate, _network
from bellhop.web.request_limits import BodyLimit

KIB = 1024


def test_a_burst_is_allowed_and_then_the_rate() -> None:
    """`burst` requests at once, then one for each token that came back."""
    buckets = Buckets("key", Rate(per_second=2, burst=3))
    assert [buckets.take("a", 0.0) >= 0 for _ in range(4)] == [True, True, True, False]
    assert [buckets.take("a", 0.5) >= 0 for _ in range(2)] == [True, False]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.floats(0.1, 5), st.integers(1, 5))
def test_no_more_than_the_rate_gets_through(times: list[float], per_second: float, burst: int) -> None:
    """Over any stretch of time at most burst + rate x time requests are allowed."""
    buckets = Buckets("key", Rate(per_second, burst))
    allowed = [now for now in sorted(times) if buckets.take("a", now) >= 0]
    for first, start in enumerate(allowed):
        for last, end in enumerate(allowed[first:], 1):
            assert last <= burst + (end - start) * per_second + 1e-6


def test_refused_requests_cost_nothing() -> None:
    """Who goes on asking is not locked out for longer than who waits."""
    buckets = Buckets("key", Rate(per_second=1, burst=1))
    buckets.take("a", 0.0)
    for tenth in range(1, 10):
        assert buckets.take("a", tenth / 10) < 0
    assert buckets.take("a", 1.001) >= 0


def test_memory_is_bounded() -> None:
    """However many names come, no more than the capacity are kept, and those that wait keep their count."""
    buckets = Buckets("address", Rate(per_second=1, burst=2), capacity=10)
    for number in range(1000):
        buckets.take(f"old-{number}", now=0.0)
        assert len(buckets._buckets) <= 10
    buckets.take("busy", now=100.0)
    buckets.take("busy", now=100.0)
    for number in range(5):
        buckets.take(f"new-{number}", now=100.0)
    assert buckets.take("busy", now=100.0) < 0


@pytest.mark.parametrize(
    ("client", "network"),
    [
        (("192.0.2.1", 1), "192.0.2.1"),
        (("2001:db8::1", 1), "2001:db8::/64"),
        (("2001:db8:0:0:ffff::2", 1), "2001:db8::/64"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (None, ""),
    ],
)
def test_addresses_that_one_client_can_choose_from_count_as_one(client: tuple[str, int] | None, network: str) -> None:
    """An IPv6 client owns 2^64 addresses, all in one network."""
    assert _network(client) == network


class Uploads:
    """Requests whose bodies were read and that are not answered before `answer` is set."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.limit = BodyLimit(self._read, size=512 * KIB, sizes={}, in_hand=1024 * KIB)

    async def _read(self, _scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        await self.answer.wait()

    async def send(self, kib: int, *, announced: bool) -> None:
        """Send one body; raise the problem that refuses it."""
        pieces = iter([16 * KIB] * (kib // 16))
        headers = [(b"content-length", b"%d" % (kib * KIB))] if announced else []

        async def receive() -> Message:
            size = next(pieces, 0)
            return {"type": "http.request", "body": bytes(size), "more_body": size > 0}

        async def send(_message: Message) -> None:
            return None

        await self.limit({"type": "http", "path": "/", "headers": headers}, receive, send)


@pytest.mark.parametrize("announced", [True, False])
async def test_bodies_in_hand_are_bounded_and_their_room_comes_back(announced: bool) -> None:
    """Of three bodies with room for two the third is 503; small ones pass; later there is room again."""
    uploads = Uploads()
    async with asyncio.TaskGroup() as running:
        for _ in range(2):
            running.create_task(uploads.send(512, announced=announced))
        await asyncio.sleep(0)
        with pytest.raises(Problem) as refused:
            await uploads.send(512, announced=announced)
        running.create_task(uploads.send(64, announced=announced))
        uploads.answer.set()
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]
    await uploads.send(512, announced=announced)


async def test_the_room_of_a_body_that_was_refused_comes_back() -> None:
    """A body that proves too large while it comes holds nothing afterwards."""
    uploads = Uploads()
    uploads.answer.set()
    for _ in range(4):
        with pytest.raises(Problem) as refused:
            await uploads.send(528, announced=False)
        assert refused.value.status == 413
    await uploads.send(512, announced=False)
