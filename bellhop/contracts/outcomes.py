"""What became of a task: published by whoever did the work, applied to the ledger by the gateway."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from bellhop.contracts.base import Contract, Id, Text, Time


class State(StrEnum):
    """Where a task is. The last four are final, until somebody asks for another round."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    SENDING = "sending"
    RETRYING = "retrying"
    SENT = "sent"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SUPPRESSED = "suppressed"

    @property
    def final(self) -> bool:
        """Say whether nothing more will happen by itself."""
        return self in FINAL


FINAL = frozenset({State.SENT, State.FAILED, State.CANCELLED, State.SUPPRESSED})


class Outcome(Contract):
    """One step of one task (type `mail.<state>`, exchange `outcomes`).

    Steps are ordered by (round, attempt, whether final): the ledger keeps the furthest, so that outcomes may
    arrive twice or in any order.
    """

    task_id: Id
    round: Annotated[int, Field(ge=1)] = 1
    attempt: Annotated[int, Field(ge=0)] = 1
    """Counts from 1; 0 where no attempt was made (cancelled, suppressed)."""
    state: Annotated[State, Field(strict=False)]
    at: Time
    code: int | None = None
    """SMTP reply code (RFC 5321, 4.2), where a server answered."""
    enhanced: Text | None = None
    """Enhanced status code like 5.1.1 (RFC 3463), where the reply had one."""
    reply: Text | None = None
    """What the server said, or what went wrong, as one sentence."""
    relay: Text | None = None
    message_id: Text | None = None
    retry_at: Time | None = None
    """When the next attempt is due; only with `retrying`."""
    uncertain: bool = False
    """The server may have taken the mail although no 250 arrived (RFC 1047): a second copy is possible."""
    owner: Id | None = None
    lane: Text | None = None
    to: Text | None = None
    template: Text | None = None
    event_id: Text | None = None
    """Set where an event made the mailer send this: the ledger meets the task here for the first time."""
