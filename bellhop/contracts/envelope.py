"""Attributes that every message has (CloudEvents 1.0.2)."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bellhop.contracts.base import new_id, now


@dataclass(frozen=True, slots=True)
class Envelope:
    """The attributes of one event; `owner`, `source` and `id` together identify it (CloudEvents 1.0.2, 3.1)."""

    type: str
    source: str
    id: str = field(default_factory=new_id)
    time: datetime = field(default_factory=now)
    subject: str | None = None
    traceparent: str | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    """CloudEvents extension attributes of the client; passed on unread."""
    owner: str | None = None
    """Name of the API key that published it; None for our own events, those of AMQP clients and of earlier versions."""

    @property
    def identity(self) -> tuple[str, str]:
        """Return what identifies the event: its owner and source as one text, and its id.

        Clients that choose the same source and id do not collide. Without an owner the text is the source alone, as in
        earlier versions.
        """
        return (self.source if self.owner is None else f"{self.owner}\n{self.source}"), self.id
