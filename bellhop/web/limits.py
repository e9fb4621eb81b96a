"""How much one request may carry and how many requests one client may send.

head: length, size, time       `protocol.py`, because a head that never ends never reaches an application
body: time                     `protocol.py`, where it costs nothing as long as bodies come at once
body: size                     `BodyLimit`: 413, whether or not the length was announced
bodies: size of all together   `BodyLimit`: 503, so that many uploads at the same time do not fill the memory
whose name we answer to        `Hosts`: 400
requests                       `Limiter`: 429, by API key or by subject of a token; by address for all others
"""

import asyncio
import ipaddress
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellhop.web.problems import Problem, problem_response

RATE = "bellhop.rate"
"""Where a scope says how its request was counted."""
_DRAIN_SECONDS = 1.0
_SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size is always taken: large uploads must not keep mails and scores out."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_second` requests in the long run, `burst` at once."""

    per_second: float
    burst: int


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    url: int = 8 * 1024
    head: int = 32 * 1024
    headers: int = 100
    body: int = 2 * 1024 * 1024
    bodies: Mapping[str, int] = field(default_factory=dict)
    """By path: where a body may be larger, or must be smaller."""
    bodies_in_hand: int = 96 * 1024 * 1024
    """Of all large bodies together whose requests are not answered yet. Such a body costs up to twice its size."""
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    key_rate: Rate | None = Rate(10_000, 20_000)
    """For each API key."""
    subject_rate: Rate | None = Rate(50, 500)
    """For each subject of a valid token."""
    address_rate: Rate | None = Rate(50, 500)
    """For each address (IPv6: each /64 network), over its requests that come without a valid API key or token."""

    @property
    def largest_body(self) -> int:
        """Return the size of the largest body that any path takes."""
        return max(self.body, *self.bodies.values()) if self.bodies else self.body


class Hosts:
    """Answers only to the names in `allowed`, or to any if there are none; a request must name exactly one.

    It keeps a forged `Host` out of every link that an answer contains (RFC 9112, 3.2 asks for the 400).
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self.app = app
        self.allowed = frozenset(name.lower().encode() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raise Problem 400."""
        if scope["type"] != "lifespan":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if len(hosts) != 1 and (hosts or scope["http_version"] != "1.0"):
                raise Problem(400, "Bad Request", "A request must have exactly one Host header. Send one.")
            if self.allowed and (not hosts or _without_port(hosts[0]) not in self.allowed):
                raise Problem(
                    400, "Bad Request", "This server does not go by the name in the Host header. Use its own."
                )
        await self.app(scope, receive, send)


def _without_port(host: bytes) -> bytes:
    return host.lower().partition(b"]")[0] + b"]" if host.startswith(b"[") else host.lower().partition(b":")[0]


class BodyLimit:
    """Refuses a body of more than `size` bytes with 413, and one that all together have no room for with 503.

    Both before the application has seen anything of it. The bytes of a body count from their arrival until the end of
    its request, those of small bodies do not count.
    """

    def __init__(self, app: ASGIApp, size: int, sizes: Mapping[str, int], in_hand: int) -> None:
        """`sizes` are those of paths that have their own; `in_hand` is for all bodies of this process together."""
        self.app = app
        self.size = size
        self.sizes = sizes
        self.in_hand = in_hand
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raise Problem 413 or 503."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        size = self.sizes.get(scope["path"], self.size) if self.sizes else self.size
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > min(size, _SMALL_BODY_BYTES):
                problem = self._refusal(int(value), size)
                if problem is not None:
                    if not any(name == b"expect" for name, _ in scope["headers"]):
                        await _drain(receive, size)
                    raise problem
        taken = held = 0

        async def counted_receive() -> Message:
            nonlocal taken, held
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > min(size, _SMALL_BODY_BYTES):
                problem = self._refusal(taken, size, held)
                if problem is not None:
                    await _drain(receive, size)
                    raise problem
                self._held += taken - held
                held = taken
            return message

        try:
            await self.app(scope, counted_receive, send)
        finally:
            self._held -= held

    def _refusal(self, body: int, size: int, held: int = 0) -> Problem | None:
        """Return why a body of so many bytes, of which `held` count already, is not taken."""
        if body > size:
            return _too_large(size)
        if self._held - held + body > self.in_hand:
            return Problem(
                503,
                "Service Unavailable",
                "Too many large bodies are being handled. Nothing was done; send this one again shortly.",
                headers={"Retry-After": "2", "Connection": "close"},
            )
        return None


def _too_large(size: int) -> Problem:
    return Problem(
        413,
        "Content Too Large",
        f"The body is larger than {size} bytes. Send it in several smaller requests.",
        headers={"Connection": "close"},
    )


async def _drain(receive: Receive, size: int) -> None:
    """Take and forget a little more of a body that is too large.

    To close a connection with unread bytes in it resets it, and a client that is still sending would see the reset
    instead of the answer (RFC 9112, 9.6).
    """
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while size > 0:
                message = await receive()
                size -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class Buckets:
    """One token bucket for each name, in the memory of this process.

    At most `capacity` names are kept: a bucket that would be full again can be forgotten without changing anything,
    and if that does not make room, the one that was made first goes.
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
        """Take one token at the time `now` (seconds) and return how many are left; below 0, none was there to take."""
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= self.capacity:
                self._forget(now)
            bucket = self._buckets[name] = _Bucket(self.rate.burst, now)
        tokens = min(self.rate.burst, bucket.tokens + (now - bucket.at) * self.rate.per_second) - 1
        bucket.at = now
        bucket.tokens = tokens if tokens >= 0 else tokens + 1
        return tokens

    def _forget(self, now: float) -> None:
        self._buckets = {
            name: bucket for name, bucket in self._buckets.items() if now - bucket.at < self.refill_seconds
        }
        while len(self._buckets) >= self.capacity:
            del self._buckets[next(iter(self._buckets))]


class Limiter:
    """Counts requests: with a valid key against the key, with a valid token against its subject, all others by address.

    An address may be that of a proxy or an office, with many people behind it: one of them must not lock out the rest.
    """

    def __init__(self, limits: Limits) -> None:
        self._keys = Buckets("key", limits.key_rate) if limits.key_rate else None
        self._subjects = Buckets("subject", limits.subject_rate) if limits.subject_rate else None
        self._addresses = Buckets("address", limits.address_rate) if limits.address_rate else None

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
    """Return what one client can be expected to have to itself: an IPv4 address, or an IPv6 /64."""
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


class RateLimit:
    """Counts requests that bring no key, and tells every client where it stands (RateLimit header fields, draft).

    A request with a key is counted where the key is checked, in `auth.py`: before that, a flood of made-up keys
    would look like many clients. One whose key nothing has checked (an unknown path, a body that is too large) is
    counted against its address when its answer begins. Health checks are not counted.
    """

    def __init__(
        self, app: ASGIApp, limiter: Limiter, exempt: frozenset[str], counted_by_route: frozenset[str] = frozenset()
    ) -> None:
        """`counted_by_route`: paths whose routes look at a token first and count by its subject."""
        self.app = app
        self.limiter = limiter
        self.exempt = exempt
        self.counted_by_route = counted_by_route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; raise Problem 429."""
        if scope["type"] == "lifespan" or scope["path"] in self.exempt:
            self.limiter.exempt(scope)
            await self.app(scope, receive, send)
            return
        refused = False

        async def send_with_rate(message: Message) -> None:
            nonlocal refused
            if refused:
                return
            if message["type"] == "http.response.start":
                try:
                    self.limiter.count_rest(scope)
                except Problem as problem:
                    refused = True
                    await problem_response(problem)(scope, receive, with_rate)
                    return
            await with_rate(message)

        async def with_rate(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *scope.get(RATE, ())]
            await send(message)

        has_key = scope["type"] == "http" and any(name == b"authorization" for name, _ in scope["headers"])
        if not has_key and scope["path"] not in self.counted_by_route:
            self.limiter.count_address(scope)
        try:
            await self.app(scope, receive, send_with_rate)
        except Problem:
            self.limiter.count_rest(scope)
            raise
