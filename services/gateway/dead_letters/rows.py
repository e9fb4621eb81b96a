"""Dead letters as the database holds them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, without its content; times in milliseconds since 1970."""

    id: str
    queue: str
    event_id: str
    type: str
    reason: str
    error: str
    attempts: int
    died_at: int
    replayed_at: int | None
    deleted_at: int | None
    erased_at: int | None


@dataclass(frozen=True, slots=True)
class WholeDeadLetter(DeadLetter):
    """One dead letter, whole."""

    identity: str
    """Derived from the message and its time, so that a redelivered dead letter is not stored twice."""
    envelope: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """How many of one queue, type and reason wait, and since when the oldest does."""

    queue: str
    type: str
    reason: str
    count: int
    oldest: int
