"""What every message says about itself, whatever it carries (CloudEvents 1.0.2 attributes)."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bellhop.contracts.base import new_id, now


@dataclass(frozen=True, slots=True)
class Envelope:
    """The attributes of one event; `source` and `id` together name it for ever (CloudEvents 1.0.2, 3.1)."""

    type: str
    source: str
    id: str = field(default_factory=new_id)
    time: datetime = field(default_factory=now)
    subject: str | None = None
    traceparent: str | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    """Further CloudEvents attributes that a client sent; carried along, never read by us."""
