"""Tasks of any kind: their lanes, and the request to cancel one."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from bellhop.contracts.base import INT32_MAX, Contract, TaskId


class Lane(StrEnum):
    """Three queues of each kind, so that a password reset overtakes a newsletter."""

    URGENT = "urgent"
    NORMAL = "normal"
    BULK = "bulk"


class CancelTask(Contract):
    """Ask the worker to make no attempt of `round` of a task (each kind has its own type and queue: `kinds.py`)."""

    task_id: TaskId
    round: Annotated[int, Field(ge=1, le=INT32_MAX)]
    state: Literal["cancelled", "suppressed"] = "cancelled"
    """The final state of the task."""
    reason: Annotated[str, Field(max_length=2000)] | None = None
    """Why, for its history."""
