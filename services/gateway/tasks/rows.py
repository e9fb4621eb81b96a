"""Tasks and attempts as the database holds them; times in milliseconds since 1970.

They are dictionaries, because every accepted mail writes some: a dataclass would be turned into one each time.
"""

from typing import NotRequired

from typing_extensions import TypedDict

from bellhop.contracts.outcomes import State


class TaskRow(TypedDict):
    """One task."""

    id: str
    kind: str
    owner: str
    state: str
    round: int
    attempt: int
    lane: str
    recipient: str
    address: str | None
    template: str | None
    event_id: str | None
    document: bytes | None
    uncertain: bool
    created_at: int
    updated_at: int
    send_at: int | None
    finished_at: int | None
    event_source: NotRequired[str | None]
    event_type: NotRequired[str | None]
    event_time: NotRequired[int | None]
    broadcast_id: NotRequired[str | None]
    republished_at: NotRequired[int | None]
    cancel_requested_at: NotRequired[int | None]
    attempts: NotRequired["list[AttemptRow]"]


class TaskMove(TypedDict):
    """What an outcome changes in the row of its task."""

    id: str
    round: int
    attempt: int
    state: str
    uncertain: bool
    updated_at: int
    finished_at: int | None


class TaskPlace(TypedDict):
    """The state of a task, and what is shown when it changes."""

    id: str
    round: int
    attempt: int
    state: str
    uncertain: bool
    kind: str
    owner: str
    lane: str
    recipient: str
    template: str | None
    updated_at: NotRequired[int]
    finished_at: NotRequired[int | None]
    reply: NotRequired[str | None]


class AttemptRow(TypedDict):
    """One attempt, or with the number 0 the reason why none was made."""

    task_id: str
    round: int
    attempt: int
    state: str
    at: int
    code: int | None
    enhanced: str | None
    reply: str | None
    relay: str | None
    retry_at: int | None
    uncertain: bool


def ended(task: TaskRow, state: State, at: int) -> TaskRow:
    """Return the row of a task that has ended."""
    return {**task, "state": state.value, "updated_at": at, "finished_at": at}
