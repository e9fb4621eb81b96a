"""The words of an inbox: the states of its rows, and the answers to a claim."""

from dataclasses import dataclass
from enum import StrEnum

Key = tuple[str, int]
"""Task id and round."""


class InboxState(StrEnum):
    """The state of a row. The values are stored, so they never change."""

    CLAIMED = "claimed"
    """A replica works on it."""
    RETRY_PENDING = "waiting"
    """The last attempt failed, and another one follows."""
    FINISHED = "done"
    CANCELLED = "cancelled"


class ClaimDecision(StrEnum):
    """What a claim allows."""

    RUN = "run"
    """The claim is held: do the work."""
    IN_PROGRESS = "in progress"
    """A live replica holds the task: claim again later."""
    ALREADY_ATTEMPTED = "already attempted"
    """This attempt was made and failed: report it again."""
    FINISHED = "finished"
    """The task is finished or cancelled: report it again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a claim."""

    decision: ClaimDecision
    uncertain: bool = False
    """An earlier attempt may have had its effect."""
    attempt: int = 0
    """The attempt that was made before; 0 where there was none."""
    outcome: str | None = None
    """What was reported about it, as JSON."""


@dataclass(frozen=True, slots=True)
class Result:
    """How an attempt ended."""

    key: Key
    state: InboxState
    attempt: int
    uncertain: bool = False
    outcome: str | None = None
