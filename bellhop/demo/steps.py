"""What every step of the demo gets, and what it gives back."""

import time
from dataclasses import dataclass, field

from rich.progress import Progress

from bellhop.cli.errors import CannotRun
from bellhop.demo.api import Api

STALLED = 90.0
"""Seconds without any progress after which what is missing counts as lost."""


@dataclass(frozen=True)
class System:
    """The running system, and where to show what is going on."""

    gateway: Api
    visitor: Api
    """The gateway as a person's browser sees it: without a key."""
    mailbox: Api
    notifier_url: str | None
    """None: where the gateway says it is."""
    run: str
    """The name of this run: part of every subject, channel and board, so that no run sees another's."""
    progress: Progress


@dataclass
class Result:
    """One row of the closing table."""

    what: str
    accepted: int = 0
    """Answered with 2xx, so promised."""
    done: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    """One sentence for each thing that is not as promised; doubles that are announced are none of them."""
    seconds: float = 0.0
    remark: str = ""

    @property
    def rate(self) -> float:
        """Things done in a second."""
        return self.done / self.seconds if self.seconds else 0.0


class Stopwatch:
    """Tells how long something takes, and when it no longer moves on."""

    def __init__(self) -> None:
        self._began = self._moved = time.monotonic()
        self._seen = -1

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    def stalled(self, count: int) -> bool:
        """Say whether `count` has not grown for so long that waiting makes no sense any more."""
        if count > self._seen:
            self._seen, self._moved = count, time.monotonic()
        return time.monotonic() - self._moved > STALLED


def first_error(errors: BaseExceptionGroup[BaseException]) -> CannotRun | None:
    """Return the `CannotRun` among `errors`, where there is one."""
    found = errors.subgroup(CannotRun)
    while found is not None:
        error = found.exceptions[0]
        if isinstance(error, CannotRun):
            return error
        found = error if isinstance(error, BaseExceptionGroup) else None
    return None
