"""Subscribers and subscriptions as the database holds them; times in milliseconds since 1970."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One person."""

    email: str
    id: str
    name: str
    attributes: bytes
    """A JSON object."""
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """One subscription."""

    list: str
    email: str
    state: str
    created_at: int
    asked_at: int | None
    confirmed_at: int | None
    unsubscribed_at: int | None
