"""A hash table from names to slots and back: a million names take 30 MB.

A dict of str takes 130 MB. Here the names are concatenated in one piece of memory, and a hash table of 32-bit numbers
(open addressing, linear probing) finds a name in half a microsecond.
"""

import mmap
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.leaderboard.scoring import Flags, Slots, Times

_SMALLEST = 64
_LENGTH_BYTES = 16  # expected bytes of a name
_MAPPED_BYTES = 65_536  # from this many bytes on, use a mapping; Linux allows about 65,000 a process
_HUGE_BYTES = 4_000_000  # from this many bytes on, use huge pages
_PART_NAMES = 8192  # names looked up together: few enough for the processor's cache


class Names:
    """Slots count from 0, in the order of insertion, and never change. One thread may add while other threads read."""

    def __init__(self, expected: int = 0) -> None:
        """`expected`: number of names to make room for, so that the table need not grow."""
        self._text = _text(_LENGTH_BYTES * max(expected, _SMALLEST))
        self._ends = array("I", [0])  # where each name ends in _text; the first entry is where the first begins
        size = _SMALLEST
        while 2 * size < 3 * expected:
            size *= 2
        self._table = _free(size)  # slot + 1; 0 is free. At most two thirds are taken

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, slot: int) -> str:
        return self.raw(slot).decode()

    def raw(self, slot: int) -> bytes:
        """Return the name in UTF-8."""
        return bytes(self._text[self._ends[slot] : self._ends[slot + 1]])

    def find(self, name: str) -> int:
        """Return the slot of `name`, or -1."""
        raw = name.encode()
        text, ends, table = self._text, self._ends, self._table
        last = len(table) - 1
        place = hash(raw) & last
        while number := table[place]:
            if text[ends[number - 1] : ends[number]] == raw:
                return number - 1
            place = (place + 1) & last
        return -1

    def add(self, names: Sequence[str]) -> Slots:
        """Return the slot of each name; new ones get the next free slots. No name is empty."""
        parts = [self._add(names[begin : begin + _PART_NAMES]) for begin in range(0, len(names), _PART_NAMES)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def add_new(self, names: Sequence[str]) -> Slots:
        """Do the same in half the time, for names that are all different and not in the table."""
        return np.array([self._insert(name.encode()) for name in names], np.int32)

    def _add(self, names: Sequence[str]) -> Slots:
        raws = [name.encode() for name in names]
        slots = self._find_all(raws)
        for index in np.flatnonzero(slots < 0).tolist():
            known = self.find(names[index])  # twice in one part?
            slots[index] = known if known >= 0 else self._insert(raws[index])
        return slots

    def _insert(self, raw: bytes) -> int:
        table = self._table
        last = len(table) - 1
        place = hash(raw) & last
        while table[place]:
            place = (place + 1) & last
        text, ends = self._text, self._ends
        number, begin = len(ends), ends[-1]
        end = begin + len(raw)
        if end > len(text):
            text = _text(2 * end)
            text[:begin] = self._text[:begin]
            self._text = text
        text[begin:end] = raw
        ends.append(end)
        table[place] = number  # written last, so that a concurrent reader that sees the number finds the name
        if 3 * number > 2 * len(table):
            self._table = self._enlarged()
        return number - 1

    def _find_all(self, raws: list[bytes]) -> Slots:
        """Return the slot of each name, or -1: `find` on columns, with the memory accesses of a step together."""
        # The memory must not grow while these views exist.
        table, ends, text = (
            np.asarray(self._table),
            np.frombuffer(self._ends, np.uint32),
            np.frombuffer(self._text, np.uint8),
        )
        lengths = np.fromiter(map(len, raws), np.int64, len(raws))
        begins = np.cumsum(lengths) - lengths
        wanted = np.frombuffer(b"".join(raws), np.uint8)
        last = len(table) - 1
        slots = np.full(len(raws), -1, np.int32)
        left = np.arange(len(raws))
        places = np.fromiter(map(hash, raws), np.int64, len(raws)) & last
        while len(left):
            numbers = table[places]
            taken = numbers > 0
            left, places, numbers = left[taken], places[taken], numbers[taken]
            starts = ends[numbers - 1].astype(np.int64)
            same = ends[numbers] - starts == lengths[left]
            same[same] = _equal(text, starts[same], wanted, begins[left[same]], lengths[left[same]])
            slots[left[same]] = numbers[same] - 1
            left, places = left[~same], (places[~same] + 1) & last
        return slots

    def _enlarged(self) -> "memoryview[int]":
        table = _free(2 * len(self._table))
        last = len(table) - 1
        for slot in range(len(self)):
            place = hash(self.raw(slot)) & last
            while table[place]:
                place = (place + 1) & last
            table[place] = slot + 1
        return table


def _text(size: int) -> "mmap.mmap | bytearray":
    if size < _MAPPED_BYTES:
        return bytearray(size)
    # Slices of a mapping are bytes, which are faster to make and compare than slices of a bytearray; a mapping can have
    # huge pages; and its unused part takes no memory.
    text = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        text.madvise(mmap.MADV_HUGEPAGE)
    return text


def _free(size: int) -> "memoryview[int]":
    # NumPy allocates with huge pages; reading a number through the view costs half as much as from NumPy.
    return memoryview(np.zeros(size, np.int32))  # type: ignore[arg-type]


def _equal(
    text: NDArray[np.uint8], starts: Times, other: NDArray[np.uint8], other_starts: Times, lengths: Times
) -> Flags:
    """Return for each pair of pieces, which have the same length, whether they are equal."""
    if not len(lengths):
        return np.empty(0, np.bool_)
    edges = np.cumsum(lengths) - lengths
    offsets = np.arange(int(lengths.sum())) - np.repeat(edges, lengths)
    same = text[np.repeat(starts, lengths) + offsets] == other[np.repeat(other_starts, lengths) + offsets]
    return np.logical_and.reduceat(same, edges)
