"""One message: what a publisher gives and what a handler gets, and how both lie on the wire.

The binding is CloudEvents' AMQP one in binary mode, with its attributes in the headers of AMQP 0-9-1 under the
`cloudEvents:` prefix. The AMQP `message_id` is new for each publish attempt: brokers' returns are matched by it,
so two messages in flight must never share it. What names the event is `cloudEvents:id`.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bellhop.contracts.envelope import Envelope

PREFIX = "cloudEvents:"
ATTEMPT = "attempt"


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
    """Only what the broker said: a resend by a publisher does not show here."""
    offset: int | None = None
    """Position in a stream; None from a queue."""


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
    for name, value in envelope.extensions.items():
        headers[PREFIX + name] = value
    headers.update(message.headers)
    return headers


_KNOWN = {PREFIX + name for name in ("specversion", "id", "source", "type", "time", "subject")}


def from_headers(headers: dict[str, Any]) -> Envelope:
    """Read the envelope back; a `ValueError` names the header that is missing or wrong."""
    values = {}
    for name in ("id", "source", "type", "time"):
        value = headers.get(PREFIX + name)
        if not isinstance(value, str) or not value or len(value) > 1024:
            raise ValueError(f"header {PREFIX}{name} must be a non-empty string")
        values[name] = value
    try:
        time = datetime.fromisoformat(values["time"])
    except ValueError:
        raise ValueError(f"header {PREFIX}time is not an RFC 3339 time") from None
    if time.tzinfo is None:
        raise ValueError(f"header {PREFIX}time lacks its offset from UTC")
    subject = headers.get(PREFIX + "subject")
    traceparent = headers.get("traceparent")
    return Envelope(
        id=values["id"],
        source=values["source"],
        type=values["type"],
        time=time,
        subject=subject if isinstance(subject, str) else None,
        traceparent=traceparent if isinstance(traceparent, str) else None,
        extensions={
            name.removeprefix(PREFIX): value
            for name, value in headers.items()
            if name.startswith(PREFIX) and name not in _KNOWN
        },
    )
