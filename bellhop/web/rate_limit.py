"""Rate limits of requests (429): by API key, by subject of a token, or else by address.

The counts are those of this process: N replicas accept N times the rate.
"""

import ipaddress
import math
import time
from dataclasses import dataclass

from starlette.types import Scope

from bellhop.web.problems import Problem

RATE = "bellhop.rate"
"""The key of a scope's rate limit headers; a scope without it is not counted yet."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` requests on average, `burst` without a pause."""

    per_second: float
    burst: int


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """One token bucket for each name, in the memory of this process.

    At most `capacity` buckets are kept. Buckets that would be full again are deleted first, which changes no result;
    then the oldest ones.
    """

    def __init__(self, policy: str, rate: Rate, capacity: int = 100_000) -> None:
        self.policy = policy
        self.rate = rate
        self.refill_seconds = rate.burst / rate.per_second
        quota = f'"{policy}";q={rate.burst};w={math.ceil(self.refill_seconds)}'
        self.header = (b"ratelimit-policy", quota.encode())
        self.capacity = capacity
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, now: float) -> float:
        """Take one token at the time `now` (seconds) and return the number of those left; below 0 if there was none."""
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self.capacity:
                self._evict(now)
            bucket = self._buckets[name] = _Bucket(self.rate.burst, now)
        tokens = min(self.rate.burst, bucket.tokens + (now - bucket.at) * self.rate.per_second) - 1
        bucket.at = now
        bucket.tokens = tokens if tokens >= 0 else tokens + 1
        return tokens

    def _evict(self, now: float) -> None:
        self._buckets = {
            name: bucket for name, bucket in self._buckets.items() if now - bucket.at < self.refill_seconds
        }
        while len(self._buckets) >= self.capacity:
            del self._buckets[next(iter(self._buckets))]


class Limiter:
    """Counts requests: with a valid key against the key, with a valid token against its subject, all others by address.

    Many clients may share the address of a proxy or an office: one of them must not lock out the others.
    """

    def __init__(self, keys: Rate | None, subjects: Rate | None, addresses: Rate | None) -> None:
        """None: such requests are not limited."""
        self._keys = Buckets("key", keys) if keys else None
        self._subjects = Buckets("subject", subjects) if subjects else None
        self._addresses = Buckets("address", addresses) if addresses else None

    def count_key(self, scope: Scope, key_id: str) -> None:
        """Count a request of the key `key_id`; raise Problem 429 if it is one too many."""
        if self._keys is not None:
            _count(scope, self._keys, key_id)

    def count_subject(self, scope: Scope, subject: str) -> None:
        """Count a request with a valid token of `subject`; raise Problem 429 if it is one too many."""
        if self._subjects is not None:
            _count(scope, self._subjects, subject)

    def count_address(self, scope: Scope) -> None:
        """Count a request without a valid key or token against its address; raise Problem 429 if it is one too many."""
        if self._addresses is not None:
            _count(scope, self._addresses, _network(scope["client"]))

    def exempt(self, scope: Scope) -> None:
        """Note that no limit counts this request."""
        scope[RATE] = ()

    def count_rest(self, scope: Scope) -> None:
        """Count a request by its address if nothing has counted it yet; raise Problem 429 if it is one too many."""
        if RATE not in scope:
            self.count_address(scope)


def _network(client: tuple[str, int] | None) -> str:
    """Return the network that counts as one client: an IPv4 address, or an IPv6 /64."""
    host = client[0] if client else ""
    if ":" not in host:
        return host
    return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))


def _count(scope: Scope, buckets: Buckets, name: str) -> None:
    rate, policy = buckets.rate, buckets.policy
    left = buckets.take(name, time.monotonic())
    full_in = math.ceil((rate.burst - max(left, 0)) / rate.per_second)
    scope[RATE] = (buckets.header, (b"ratelimit", b'"%b";r=%d;t=%d' % (policy.encode(), max(left, 0), full_in)))
    if left < 0:
        wait = math.ceil(-left / rate.per_second)
        raise Problem(
            429,
            "Too Many Requests",
            f"This {policy} sent more requests than it may. Send the next one in {wait} seconds.",
            type="https://iana.org/assignments/http-problem-types#quota-exceeded",
            headers={"Retry-After": str(wait)},
            extensions={"violated-policies": [policy]},
        )
