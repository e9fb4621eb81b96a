"""The newest part of the stream, in memory: bounded by count, bytes and age."""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from services.notifier.events import Event

START = "none:-1"
"""The id of the end of an empty stream."""
PIECE_BYTES = 256 * 1024
"""Bytes of one piece of a replay; the next piece waits for a slow reader."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a replay."""

    shown: list[tuple[Event, str]]
    """Events, each with the channel on which it is shown."""
    end: int
    """Offset up to which the reader has all events after this piece."""
    complete: bool
    """Whether the piece reaches the end of the log."""


class Log:
    """Events in the order of their offsets, which rise but need not be contiguous: foreign messages are left out."""

    def __init__(self, *, events: int, size: int, seconds: float) -> None:
        """`events`, `size` (bytes) and `seconds` limit the window; the newest event always stays."""
        self._limits = (events, size, seconds)
        self._events: list[Event] = []
        self._head = 0  # where the window begins in `_events`: cutting a long list for each event would be slow
        self._arrivals: deque[float] = deque()
        self._keys: set[bytes] = set()
        self._lost = -1
        """Offset of the last event that is no longer, or never was, in the window."""
        self.bytes = 0

    def __len__(self) -> int:
        """Return how many events the window holds."""
        return len(self._events) - self._head

    @property
    def first(self) -> int:
        """Offset of the oldest event; -1 if there is none."""
        return self._events[self._head].offset if len(self) else -1

    @property
    def end(self) -> int:
        """Offset of the newest event; -1 if there is none."""
        return self._events[-1].offset if len(self) else -1

    @property
    def end_id(self) -> str:
        """The id that a reader who knows everything resumes from."""
        return self._events[-1].id if len(self) else START

    def append(self, event: Event) -> bool:
        """Append the newest event; return whether it is to be shown.

        A publisher without a confirm publishes an event again: the copy has a position, but is not shown.
        """
        if not len(self):
            self._lost = max(self._lost, event.offset - 1)
        copy = event.key in self._keys
        if copy:
            event = Event(event.offset, event.key)
        self._keys.add(event.key)
        self._events.append(event)
        self._arrivals.append(time.monotonic())
        self.bytes += event.size
        self._trim()
        return not copy and bool(event.channels)

    def clear(self) -> None:
        """Remove all events: the next event does not continue them."""
        self._lost = -1
        self._events, self._head, self.bytes = [], 0, 0
        self._arrivals.clear()
        self._keys.clear()

    def find(self, id: str) -> int | None:
        """Return the offset of `id`, or None if a reader cannot resume from it without a gap."""
        if id == START:
            return -1 if self._lost == -1 else None
        tag, _, digits = id.partition(":")
        if not digits.isdecimal() or not digits.isascii() or len(digits) > 20:
            return None
        place = self._after(int(digits)) - 1
        if place < self._head or self._events[place].id != f"{tag}:{digits}":
            return None
        return int(digits)

    def is_ahead(self, id: str) -> bool:
        """Return whether `id` may name an event that this process has not read yet."""
        digits = id.partition(":")[2]
        return digits.isdecimal() and digits.isascii() and len(digits) <= 20 and int(digits) > self.end

    def read(self, offset: int, channels: Collection[str], limit: int = PIECE_BYTES) -> Piece | None:
        """Return the events on `channels` after `offset`, about `limit` bytes at most; None: there is a gap."""
        if offset < self._lost:
            return None
        wanted = frozenset(channels)
        shown = []
        size = 0
        for place in range(self._after(offset), len(self._events)):
            event = self._events[place]
            offset = event.offset
            channel = next((channel for channel in event.channels if channel in wanted), None)
            if channel is None:
                continue
            shown.append((event, channel))
            size += event.size
            if size >= limit:
                return Piece(shown, offset, complete=place == len(self._events) - 1)
        return Piece(shown, offset, complete=True)

    def _after(self, offset: int) -> int:
        return bisect_right(self._events, offset, lo=self._head, key=lambda event: event.offset)

    def _trim(self) -> None:
        events, size, seconds = self._limits
        too_old = time.monotonic() - seconds
        while len(self) > 1 and (len(self) > events or self.bytes > size or self._arrivals[0] < too_old):
            event = self._events[self._head]
            self._head += 1
            self._arrivals.popleft()
            self._keys.discard(event.key)
            self.bytes -= event.size
            self._lost = event.offset
        if self._head > 1024 and self._head > len(self._events) // 2:
            del self._events[: self._head]
            self._head = 0
