"""Token buckets, without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellhop.web.limits import Buckets, Rate, _network


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
