"""The states of a task, and the outcomes that move it: the worker publishes them, the gateway applies them."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints

from bellhop.contracts.base import INT32_MAX, Contract, Id, MessageTime, TaskId, Text


class State(StrEnum):
    """State of a task. The last four are final, until a client asks for another round."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RETRYING = "retrying"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"

    @property
    def final(self) -> bool:
        """Return whether the round has ended."""
        return self in FINAL


FINAL = frozenset({State.SENT, State.FAILED, State.CANCELLED, State.SUPPRESSED})


class TaskEvent(StrEnum):
    """What changes the state of a task. An outcome that reports a state is the event of the same name."""

    QUEUED = "queued"
    """A client or an event asked for the task."""
    SCHEDULED = "scheduled"
    """The same, for a later time."""
    DUE = "due"
    """The time has come, and the broker has the message."""
    RETRYING = "retrying"
    """An attempt failed, and another one follows."""
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"
    RETRY = "retry"
    """A client asked for another round."""
    REPLAY = "replay"
    """A dead letter was published again, in the same round."""


_UNFINISHED = (State.SCHEDULED, State.QUEUED, State.RETRYING)
_REPORTED = (State.RETRYING, State.SENT, State.FAILED, State.CANCELLED, State.SUPPRESSED)

TRANSITIONS: dict[tuple[State | None, TaskEvent], State] = {
    # None: there is no task yet. It ends immediately where its recipient is suppressed or cannot be written to.
    (None, TaskEvent.QUEUED): State.QUEUED,
    (None, TaskEvent.SCHEDULED): State.SCHEDULED,
    (None, TaskEvent.FAILED): State.FAILED,
    (None, TaskEvent.SUPPRESSED): State.SUPPRESSED,
    (State.SCHEDULED, TaskEvent.DUE): State.QUEUED,
    # Outcomes may overtake each other, and the note that a scheduled task is due.
    **{(state, TaskEvent(reported.value)): reported for state in _UNFINISHED for reported in _REPORTED},
    **{(state, TaskEvent.RETRY): State.QUEUED for state in (State.FAILED, State.CANCELLED, State.SUPPRESSED)},
    (State.FAILED, TaskEvent.REPLAY): State.QUEUED,
}
"""The states of a task are one machine: (state, event) -> state. What is not listed changes nothing."""


class Outcome(Contract):
    """One step of one task (type `<kind>.<state>`, exchange `outcomes`).

    Steps are ordered by (round, attempt, whether final): the ledger keeps the furthest, so that outcomes may
    arrive twice or in any order.
    """

    task_id: TaskId
    round: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1
    attempt: Annotated[int, Field(ge=0, le=INT32_MAX)] = 1
    """Counts from 1; 0 where no attempt was made (cancelled, suppressed)."""
    state: Annotated[State, Field(strict=False)]
    at: MessageTime
    code: Annotated[int, Field(ge=0, le=999)] | None = None
    """SMTP reply code (RFC 5321, 4.2), where a server answered."""
    enhanced: Annotated[Text, StringConstraints(max_length=16)] | None = None
    """Enhanced status code like 5.1.1 (RFC 3463), where the reply had one."""
    reply: Text | None = None
    """The server's reply, or the error, as one sentence."""
    relay: Annotated[Text, StringConstraints(max_length=255)] | None = None
    message_id: Text | None = None
    retry_at: MessageTime | None = None
    """When the next attempt is due; only with `retrying`."""
    uncertain: bool = False
    """The server may have taken the mail although no 250 arrived (RFC 1047): a second copy is possible."""
    owner: Id | None = None
    lane: Annotated[Text, StringConstraints(max_length=16)] | None = None
    to: Annotated[Text, StringConstraints(max_length=320)] | None = None
    template: Annotated[Text, StringConstraints(max_length=128)] | None = None
    document: dict[str, JsonValue] | None = None
    """The whole task, in the first outcome of a task that an event caused: another round needs it."""
    cause: Text | None = None
    """Class of the failure, if known: `bad-address` may be suppressed, `policy` must not be (docs/mail.md)."""
    event_id: Id | None = None
    """Set if an event caused the task: the ledger then learns of the task by this outcome."""
    kind: Annotated[Text, StringConstraints(max_length=16)] | None = None
    """Of a task that an event set off; None is mail, as in messages from before there were other kinds."""
    event_source: Annotated[Text, StringConstraints(max_length=1024)] | None = None
    """Of the event, as the next two; in the first outcome alone."""
    event_type: Annotated[Text, StringConstraints(max_length=255)] | None = None
    event_time: MessageTime | None = None
