"""A circuit breaker: what keeps failing is left alone for a while, then tried again by one alone."""

from collections.abc import Callable

THRESHOLD = 3
"""So many failures in a row open it. One may happen to anybody, such as a relay with a connection too many."""


class Breaker:
    """Closed: work goes through. Open: it does not, and somebody probes from time to time."""

    def __init__(self, opened: Callable[[], None], closed: Callable[[], None]) -> None:
        """`opened` and `closed` are called when it opens and closes."""
        self._opened = opened
        self._closed = closed
        self._failures = 0
        self.failure: str | None = None
        """Why it is open, as a sentence; None while it is closed."""

    @property
    def closed(self) -> bool:
        """Say whether work may go through."""
        return self.failure is None

    def failed(self, sentence: str) -> None:
        """Count a failure."""
        self._failures += 1
        if self._failures >= THRESHOLD:
            self.open(sentence)

    def open(self, sentence: str) -> None:
        """Let nothing through from now on."""
        if self.failure is None:
            self.failure = sentence
            self._opened()

    def succeeded(self) -> None:
        """Work got through: all is well."""
        self._failures = 0
        if self.failure is not None:
            self.failure = None
            self._closed()

    def half_open(self) -> None:
        """A probe got through: let work through again, but the next failure opens at once."""
        self._failures = THRESHOLD - 1
        if self.failure is not None:
            self.failure = None
            self._closed()
