"""Requests and answers about dead letters."""

from typing import Annotated, NotRequired

from pydantic import Field, JsonValue
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp
from bellhop.contracts.base import AnyJson, Contract, Line, Name


class EditRequest(Contract):
    """`POST /v1/dead-letters/{letter_id}/replay`: a body in place of the one that failed."""

    body: AnyJson


class GroupReplayRequest(Contract):
    """`POST /v1/dead-letters/replay`."""

    queue: Name
    type: Annotated[Line, Field(max_length=255)] | None = None
    """Only those of this type."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    rate: Annotated[float, Field(gt=0, le=1000)] = 50.0
    """Messages a second, so that a repaired consumer is not overloaded again."""


class DeadLetterAnswer(TypedDict):
    """One dead letter, without its content."""

    id: str
    queue: str
    event_id: str
    type: str
    reason: str
    error: str
    attempts: int
    died_at: Timestamp
    replayed_at: Timestamp | None
    deleted_at: Timestamp | None
    erased_at: Annotated[Timestamp | None, Field(description="when the body was erased because its time was over")]


class WholeDeadLetterAnswer(DeadLetterAnswer):
    """One dead letter, whole."""

    envelope: dict[str, JsonValue]
    body: Annotated[JsonValue, Field(description="as JSON where it is JSON, else as text")]
    body_bytes: NotRequired[Annotated[int, Field(description="its length, where only the beginning is shown")]]


class GroupAnswer(TypedDict):
    """How many dead letters of one queue, type and reason wait."""

    queue: str
    type: str
    reason: str
    count: int
    oldest: Timestamp


class DeadLettersAnswer(TypedDict):
    """A page of dead letters, and all groups."""

    dead_letters: list[DeadLetterAnswer]
    groups: list[GroupAnswer]
    next: Annotated[str | None, Field(description="the `cursor` of the following page")]


class ReplayAnswer(TypedDict):
    """How many were replayed."""

    replayed: int
