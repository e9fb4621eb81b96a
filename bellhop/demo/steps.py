"""Argument and result of every step of the demo."""

import time
from dataclasses import dataclass, field

from rich.progress import Progress

from bellhop.cli.errors import CannotRun
from bellhop.demo.api import Api

STALLED_SECONDS = 90.0
"""After this time without progress, missing items count as lost."""


@dataclass(frozen=True)
class System:
    """The running system, and the progress display."""

    gateway: Api
    visitor: Api
    """The gateway as a person's browser sees it: without a key."""
    mailbox: Api
    notifier_url: str | None
    """None: the URL that the gateway reports."""
    run: str
    """Name of this run: part of every subject, channel and board, so that runs do not mix."""
    progress: Progress


@dataclass
class StepResult:
    """One row of the table of results."""

    what: str
    accepted: int = 0
    """Number of requests that were answered with 2xx."""
    done: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    """One sentence for each broken guarantee; copies of tasks marked `uncertain` do not count."""
    seconds: float = 0.0
    remark: str = ""

    @property
    def rate(self) -> float:
        """Items done per second."""
        return self.done / self.seconds if self.seconds else 0.0


class Stopwatch:
    """Measures the duration of a step, and detects that it makes no progress."""

    def __init__(self) -> None:
        self._began = self._moved = time.monotonic()
        self._seen = -1

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def stalled(self, count: int) -> bool:
        """Return whether `count` has not grown for `STALLED_SECONDS`."""
        if count > self._seen:
            self._seen, self._moved = count, time.monotonic()
        return time.monotonic() - self._moved > STALLED_SECONDS


def first_error(errors: BaseExceptionGroup[BaseException]) -> CannotRun | None:
    """Return the first `CannotRun` among `errors`; None if there is none."""
    found = errors.subgroup(CannotRun)
    while found is not None:
        error = found.exceptions[0]
        if isinstance(error, CannotRun):
            return error
        found = error if isinstance(error, BaseExceptionGroup) else None
    return None
