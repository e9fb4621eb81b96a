"""A circuit breaker: after several failures in a row nothing is sent, except for a probe from time to time."""

from collections.abc import Callable

THRESHOLD = 3
"""The breaker opens after this many failures in a row. A single failure is normal, such as a connection too many."""


class Breaker:
    """Closed: work goes through. Open: it does not, and the owner of the breaker probes from time to time."""

    def __init__(self, opened: Callable[[], None], closed: Callable[[], None]) -> None:
        """`opened` and `closed` are called when it opens and closes."""
        self._opened = opened
        self._closed = closed
        self._failures = 0
        self.failure: str | None = None
        """Why it is open, as a sentence; None while it is closed."""

    @property
    def closed(self) -> bool:
        """Return whether work may start."""
        return self.failure is None

    def failed(self, sentence: str) -> None:
        """Count a failure; `sentence` says what failed."""
        self._failures += 1
        if self._failures >= THRESHOLD:
            self.open(sentence)

    def open(self, sentence: str) -> None:
        """Let nothing through from now on."""
        if self.failure is None:
            self.failure = sentence
            self._opened()

    def succeeded(self) -> None:
        """Close it, and count failures from 0."""
        self._failures = 0
        self._close()

    def half_open(self) -> None:
        """Close it after a probe got through; the next failure opens it again."""
        self._failures = THRESHOLD - 1
        self._close()

    def _close(self) -> None:
        if self.failure is not None:
            self.failure = None
            self._closed()
