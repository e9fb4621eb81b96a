"""The limits on the size and duration of requests.

head: length, size, time       `protocol.py`, because an unfinished head never reaches an application
body: time                     `protocol.py`, where it has no cost if the body arrives immediately
body: size                     `BodyLimit`: 413, also if the length was not announced
bodies: size of all together   `BodyLimit`: 503, so that many concurrent uploads do not fill the memory
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellhop.web.problems import Problem
from bellhop.web.rate_limit import Rate

_DRAIN_SECONDS = 1.0
_SMALL_BODY_BYTES = 64 * 1024
"""A body up to this size is always accepted: large uploads must not block mails and scores."""
_KEY_RATE = Rate(per_second=10_000, burst=20_000)
_CLIENT_RATE = Rate(per_second=50, burst=500)


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    url: int = 8 * 1024
    head: int = 32 * 1024
    headers: int = 100
    body: int = 2 * 1024 * 1024
    bodies: Mapping[str, int] = field(default_factory=dict)
    """By path: other limits than `body`."""
    bodies_in_hand: int = 96 * 1024 * 1024
    """Of all large bodies whose requests are not answered yet. Such a body takes up to twice its size in memory."""
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    key_rate: Rate | None = _KEY_RATE
    """For each API key."""
    subject_rate: Rate | None = _CLIENT_RATE
    """For each subject of a valid token."""
    address_rate: Rate | None = _CLIENT_RATE
    """For each address (IPv6: each /64 network), over its requests that come without a valid API key or token."""

    @property
    def largest_body(self) -> int:
        """Return the largest body limit of all paths."""
        return max(self.body, *self.bodies.values()) if self.bodies else self.body


class BodyLimit:
    """Refuses a body of more than `size` bytes with 413, and one beyond the limit of all bodies with 503.

    The application does not get any of it. The bytes of a body count from their arrival until the end of its request;
    small bodies do not count.
    """

    def __init__(self, app: ASGIApp, size: int, sizes: Mapping[str, int], in_hand: int) -> None:
        """`sizes`: limits of paths that have their own; `in_hand`: limit of all bodies of this process together."""
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
        """Return the refusal of a body of so many bytes, of which `held` are already counted, or None."""
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
    """Read and discard a part of a body that is too large.

    Closing a connection with unread bytes resets it, and a client that is still sending would get the reset instead of
    the answer (RFC 9112, 9.6).
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
