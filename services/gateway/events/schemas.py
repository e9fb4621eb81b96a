"""What is answered about events."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp
from services.gateway.tasks.schemas import TaskAnswer


class ScoresAcceptedAnswer(TypedDict):
    """How many scores were accepted."""

    id: str
    accepted: int


class EventsAcceptedAnswer(TypedDict):
    """Events that were accepted together."""

    accepted: int
    ids: Annotated[list[str], Field(description="in the order of the events")]


class EventAnswer(TypedDict):
    """What an event set off. Fields in which events of one id differ are left out."""

    id: str
    source: NotRequired[str]
    type: NotRequired[str]
    time: NotRequired[Timestamp]
    tasks: list[TaskAnswer]
