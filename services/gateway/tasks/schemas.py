"""Answers about tasks."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp
from bellhop.contracts.outcomes import State


class AttemptAnswer(TypedDict):
    """One attempt, or with the number 0 the reason why none was made."""

    round: int
    attempt: int
    state: State
    at: Timestamp
    code: Annotated[int | None, Field(description="SMTP reply code")]
    enhanced: Annotated[str | None, Field(description="enhanced status code like 5.1.1 (RFC 3463)")]
    reply: Annotated[str | None, Field(description="what the server said, or what went wrong")]
    relay: str | None
    retry_at: Annotated[Timestamp | None, Field(description="when the next attempt is due")]
    uncertain: bool


class TaskAnswer(TypedDict):
    """One task. Empty fields are left out."""

    id: str
    kind: str
    state: State
    round: int
    attempt: int
    to: str
    lane: str
    template: NotRequired[str]
    event_id: NotRequired[Annotated[str, Field(description="of the event that set it off")]]
    event_source: NotRequired[str]
    broadcast_id: NotRequired[str]
    uncertain: Annotated[
        bool, Field(description="the relay may have taken an attempt although no 250 arrived (RFC 1047)")
    ]
    created_at: Timestamp
    updated_at: Timestamp
    send_at: NotRequired[Timestamp]
    finished_at: NotRequired[Timestamp]
    attempts: NotRequired[Annotated[list[AttemptAnswer], Field(description="not in lists")]]


class TasksAnswer(TypedDict):
    """A page of tasks."""

    tasks: list[TaskAnswer]
    next: Annotated[str | None, Field(description="the `cursor` of the following page")]


class TaskStateAnswer(TypedDict):
    """The state of one task."""

    id: str
    state: State
