"""Live notifications: what a client raises and what a browser is sent."""

from typing import Annotated

from pydantic import Field, StringConstraints

from bellhop.contracts.base import Contract, Data, Line, Name, Text

MAX_SHOWN_BYTES = 128 * 1024
"""The JSON text of what is shown live: of a notification when it is accepted, and of every event when it is shown.

It is far below what a reader's buffer holds, so that no single event makes a reader slow.
"""
MAX_TOKEN_BYTES = 7 * 1024
"""Of a stream token: in a browser it is part of a URL, of which servers take 8 KiB."""


class Notification(Contract):
    """`POST /v1/notifications`, event type `notification.raised`: shown to everybody on any of `channels`."""

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
