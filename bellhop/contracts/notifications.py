"""Live notifications: the request of a client, and what a reader receives."""

from typing import Annotated

from pydantic import Field, StringConstraints

from bellhop.contracts.base import Contract, Data, Line, Name, Text

MAX_SHOWN_BYTES = 128 * 1024
"""Bytes of JSON of a live event: checked when a notification is accepted, and for every event when it is shown.

Far below the size of a reader's buffer, so that no single event fills it.
"""
MAX_TOKEN_BYTES = 7 * 1024
"""Channels of a stream token: in a browser it is part of a URL, and servers accept URLs of 8 KiB."""


class Notification(Contract):
    """`POST /v1/notifications`, event type `notification.raised`: shown to all readers of any of `channels`."""

    channels: Annotated[list[Name], Field(min_length=1, max_length=100)]
    title: Annotated[Line, StringConstraints(max_length=200)]
    body: Annotated[Text, StringConstraints(max_length=16_384)] | None = None
    data: Data = Field(default_factory=dict)
    key: Name | None = None
    """A later notification with the same key takes the place of this one on the screen."""


class StreamTokenRequest(Contract):
    """`POST /v1/stream-tokens`."""

    subject: Name
    channels: Annotated[list[Name], Field(min_length=1, max_length=100)]
    expires_in: Annotated[int, Field(ge=1, le=86_400)] = 3600
    """Seconds."""
