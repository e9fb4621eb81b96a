"""One message: what a publisher sends, what a handler receives, and the AMQP headers of both.

The binding is CloudEvents' AMQP one in binary mode, with its attributes in the headers of AMQP 0-9-1 under the
`cloudEvents:` prefix. The AMQP `message_id` is new for each publish attempt: brokers' returns are matched by it,
so two messages in flight must never share it. What names the event is `cloudEvents:id`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bellhop.contracts.base import INT64_MAX, one_line
from bellhop.contracts.envelope import Envelope

PREFIX = "cloudEvents:"
ATTEMPT = "attempt"
OWNER = "bellhop-owner"
MAX_ATTEMPT = 1_000_000


@dataclass(frozen=True, slots=True)
class Message:
    """A message to publish. The body is JSON."""

    body: bytes
    envelope: Envelope
    attempt: int = 1
    headers: dict[str, Any] = field(default_factory=dict)
    """Further AMQP headers."""
    expiration_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it came from a queue."""

    body: bytes
    envelope: Envelope
    attempt: int
    headers: dict[str, Any]
    queue: str
    exchange: str
    routing_key: str
    redelivered: bool
    """The broker's flag; a message that a publisher sent twice is not marked."""
    offset: int | None = None
    """Position in a stream; None from a queue."""
    error: str | None = None
    """Why it could not be decoded; then `envelope` is a placeholder, and the message is dead-lettered."""


Handler = Callable[[Delivery], Awaitable[None]]
"""Returns when the delivery is handled; raises a `HandlerSignal` otherwise (errors.py)."""


def to_headers(message: Message) -> dict[str, Any]:
    """Return the AMQP headers of `message`."""
    envelope = message.envelope
    headers: dict[str, Any] = {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": envelope.id,
        "cloudEvents:source": envelope.source,
        "cloudEvents:type": envelope.type,
        "cloudEvents:time": envelope.time.isoformat(),
        ATTEMPT: message.attempt,
    }
    if envelope.subject is not None:
        headers["cloudEvents:subject"] = envelope.subject
    if envelope.traceparent is not None:
        headers["traceparent"] = envelope.traceparent
    if envelope.owner is not None:
        headers[OWNER] = envelope.owner
    for name, value in envelope.extensions.items():
        headers[PREFIX + name] = value
    headers.update(message.headers)
    return headers


MAX_HEADERS_BYTES = 64 * 1024
"""Bytes of headers, at most: with the error of a dead letter they must fit into one frame, 128 KiB by default."""

_KNOWN = {PREFIX + name for name in ("specversion", "id", "source", "type", "time", "subject")}
_LONGEST = {"type": 255}


def from_headers(headers: dict[str, Any]) -> Envelope:
    """Return the envelope in these headers. Any client with the right to publish may have written them.

    Raises:
        ValueError: a header is missing or invalid; the text names it.
    """
    values = {}
    for name in ("id", "source", "type", "time"):
        value = headers.get(PREFIX + name)
        if not isinstance(value, str) or not value or len(value) > _LONGEST.get(name, 1024):
            raise ValueError(f"header {PREFIX}{name} must be a string of 1 to {_LONGEST.get(name, 1024)} characters")
        values[name] = one_line(value)
    if sum(len(str(name)) + len(str(value)) for name, value in headers.items()) > MAX_HEADERS_BYTES:
        raise ValueError(f"the headers are larger than {MAX_HEADERS_BYTES} bytes")
    try:
        time = datetime.fromisoformat(values["time"])
    except ValueError:
        raise ValueError(f"header {PREFIX}time is not an RFC 3339 time") from None
    if time.tzinfo is None:
        raise ValueError(f"header {PREFIX}time lacks its offset from UTC")
    subject = headers.get(PREFIX + "subject")
    traceparent = headers.get("traceparent")
    if isinstance(subject, str):
        one_line(subject)
    owner = headers.get(OWNER)
    if owner is not None and (not isinstance(owner, str) or not owner or len(owner) + len(values["source"]) > 1023):
        raise ValueError(f"header {OWNER} must be a string, with the source 1023 characters at most")
    return Envelope(
        owner=None if owner is None else one_line(owner),
        id=values["id"],
        source=values["source"],
        type=values["type"],
        time=time,
        subject=subject if isinstance(subject, str) else None,
        traceparent=traceparent if isinstance(traceparent, str) else None,
        extensions={
            name.removeprefix(PREFIX): plain(value)
            for name, value in headers.items()
            if isinstance(name, str) and name.startswith(PREFIX) and name not in _KNOWN
        },
    )


def plain(value: Any) -> str | int | bool:
    """Return a header's value as a type that every client library can send: other types become text."""
    if isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, int) and -INT64_MAX <= value <= INT64_MAX else str(value)
