"""What a long poll is answered."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, JsonValue
from typing_extensions import TypedDict


class ShownEventAnswer(TypedDict):
    """One event, as on a stream."""

    channel: str
    id: Annotated[str, Field(description="resume from it")]
    type: str
    time: datetime
    event_id: str
    source: str
    subject: str | None
    data: JsonValue


class GapAnswer(TypedDict):
    """Events that are missing."""

    after: str
    detail: str


class PollAnswer(TypedDict):
    """What was shown."""

    events: list[ShownEventAnswer]
    next: Annotated[str, Field(description="the `after` of the next poll")]
    gap: Annotated[GapAnswer | None, Field(description="events behind `after` are missing: fetch the present state")]
