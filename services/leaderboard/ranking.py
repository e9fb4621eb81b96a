"""One ranking in memory: an immutable snapshot, which readers use while the next one is made.

The order is total: key (see scoring.py), then time, then name. So of equal scores the earlier one is first, and every
replica shows the same order. Twenty-eight bytes for each player, in addition to the name.
"""

import bisect
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from bellhop.contracts.scores import Order
from services.leaderboard.names import Names
from services.leaderboard.scoring import Flags, Floats, PlayerResult, ResultColumns, Slots, Times, to_keys

Values = TypeVar("Values", Floats, Times)


@dataclass(frozen=True, slots=True)
class RankedPlayer:
    """A player with position and score."""

    position: int
    """1, 2, 3, …: unique."""
    rank: int
    """1, 1, 3, …: equal scores share the better number (standard competition ranking)."""
    player: str
    score: float
    at: int
    """Microseconds since 1970."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """An immutable snapshot. Only `names` is shared by all snapshots of a ranking."""

    names: Names
    order: Order
    keys: Floats
    at: Times
    places: Slots
    """Position - 1 by slot; -1 for a name without a result."""
    ranks: "memoryview[int]"
    """Competition rank by slot, or 0. Reading one number through a view costs half as much as from NumPy."""
    players: Slots
    """Slot by position."""

    @classmethod
    def empty(cls, order: Order, expected: int = 0) -> Self:
        """Return a ranking without players, with room for the names of `expected` players."""
        none = np.empty(0, np.int32)
        return cls(Names(expected), order, np.empty(0), np.empty(0, np.int64), none, _view(none), none)

    def __len__(self) -> int:
        return len(self.players)

    def rank(self, player: str) -> int | None:
        """Return the competition rank of `player`, or None."""
        slot = self.names.find(player)
        if slot < 0:
            return None
        try:
            return self.ranks[slot] or None
        except IndexError:  # the name is added before the snapshot with its result is shown
            return None

    def entry(self, player: str) -> RankedPlayer | None:
        """Return `player` with position and score, or None."""
        place = self._place(player)
        return self._entry(place) if place >= 0 else None

    def page(self, after: int, limit: int) -> list[RankedPlayer]:
        """Return up to `limit` players behind position `after`."""
        return [self._entry(place) for place in range(after, min(after + limit, len(self)))]

    def around(self, player: str, count: int) -> list[RankedPlayer]:
        """Return `player` with up to `count` players before and behind it; empty if there is no such player."""
        place = self._place(player)
        if place < 0:
            return []
        first = max(0, place - count)
        return self.page(first, place + count + 1 - first)

    def percentile(self, rank: int) -> float:
        """Return the share of players, in per cent, whose rank is `rank` or worse; the first have 100."""
        return percentile(len(self), rank)

    def top(self, count: int) -> list[str]:
        """Return the names of the first `count` players."""
        return [self.names[slot] for slot in self.players[:count].tolist()]

    def result(self, player: str) -> PlayerResult | None:
        """Return the result of `player`, or None."""
        slot = self.names.find(player)
        if not 0 <= slot < len(self.places) or self.places.item(slot) < 0:
            return None
        return self.keys.item(slot), self.at.item(slot)

    def known(self, slots: Slots) -> Flags:
        """Return for each slot whether it has a result."""
        known = np.zeros(len(slots), np.bool_)
        inside = slots < len(self.places)
        known[inside] = self.places[slots[inside]] >= 0
        return known

    def held(self, slots: Slots) -> tuple[Flags, Floats, Times]:
        """Return for each slot whether it has a result, and its key and time."""
        known = self.known(slots)
        keys = np.zeros(len(slots))
        at = np.zeros(len(slots), np.int64)
        keys[known] = self.keys[slots[known]]
        at[known] = self.at[slots[known]]
        return known, keys, at

    def with_results(self, results: ResultColumns) -> Self:
        """Return the next snapshot, with these results; other players keep theirs.

        Only the players that changed are sorted; they are then merged into the others, which are sorted already.
        """
        slots = results.slots
        if not len(slots):
            return self
        size = max(len(self.keys), int(slots.max()) + 1)
        keys = _grown(self.keys, size)
        at = _grown(self.at, size)
        keys[slots] = results.keys
        at[slots] = results.at
        changed = np.zeros(size, np.bool_)
        changed[slots] = True
        staying = self.players[~changed[self.players]]
        moving = slots[self._sorted(results.keys, results.at, slots)]
        points = self._insertion_points(staying, moving, keys, at)
        players = np.insert(staying, points, moving)
        return self._snapshot(keys, at, players)

    def without(self, player: str) -> Self:
        """Return the next snapshot, in which `player` has no result."""
        slot = self.names.find(player)
        return self._snapshot(self.keys, self.at, self.players[self.players != slot])

    def _snapshot(self, keys: Floats, at: Times, players: Slots) -> Self:
        positions = np.arange(1, len(players) + 1, dtype=np.int32)
        places = np.full(len(keys), -1, np.int32)
        places[players] = positions - 1
        sorted_keys = keys[players]
        shared = positions.copy()
        shared[1:][sorted_keys[1:] == sorted_keys[:-1]] = 0
        ranks = np.zeros(len(keys), np.int32)
        ranks[players] = np.maximum.accumulate(shared)
        return type(self)(self.names, self.order, keys, at, places, _view(ranks), players)

    def _place(self, player: str) -> int:
        slot = self.names.find(player)
        return self.places.item(slot) if 0 <= slot < len(self.places) else -1

    def _entry(self, place: int) -> RankedPlayer:
        slot = self.players.item(place)
        score = float(to_keys(self.keys[slot], self.order))
        return RankedPlayer(place + 1, self.ranks[slot], self.names[slot], score, self.at.item(slot))

    def _sorted(self, keys: Floats, at: Times, slots: Slots) -> Slots:
        """Return the indices that put the given results in order."""
        sequence = np.lexsort((at, keys))
        tied = (keys[sequence][1:] == keys[sequence][:-1]) & (at[sequence][1:] == at[sequence][:-1])
        # Names decide only where score and time are equal: a run of ties begins and ends where `tied` changes.
        edges = np.flatnonzero(np.diff(np.concatenate(([False], tied, [False])).astype(np.int8)))
        for begin, end in zip(edges[::2].tolist(), (edges[1::2] + 1).tolist(), strict=True):
            run = sequence[begin:end].tolist()
            sequence[begin:end] = sorted(run, key=lambda index: self.names.raw(slots.item(index)))
        return sequence.astype(np.int32)

    def _insertion_points(self, staying: Slots, moving: Slots, keys: Floats, at: Times) -> Slots:
        """Return the index in `staying` before which each of `moving` belongs."""
        staying_keys, moving_keys, moving_at = keys[staying], keys[moving], at[moving]
        low = np.searchsorted(staying_keys, moving_keys, "left")
        high = np.searchsorted(staying_keys, moving_keys, "right")
        open_ = np.flatnonzero(low < high)  # others have the same key: compare the times
        while len(open_):
            middle = (low[open_] + high[open_]) // 2
            later = at[staying[middle]] < moving_at[open_]
            low[open_[later]] = middle[later] + 1
            high[open_[~later]] = middle[~later]
            open_ = open_[low[open_] < high[open_]]
        beside = np.minimum(low, max(0, len(staying) - 1))
        if len(staying):
            neighbour = staying[beside]
            tied = (low < len(staying)) & (keys[neighbour] == moving_keys) & (at[neighbour] == moving_at)
            for index in np.flatnonzero(tied).tolist():  # the same time as well: compare the names
                low[index] = self._by_name(staying, moving.item(index), low.item(index), keys, at)
        return low.astype(np.int32)

    def _by_name(self, staying: Slots, slot: int, low: int, keys: Floats, at: Times) -> int:
        def behind(place: int) -> bool:
            other = staying.item(place)
            same = keys[other] == keys[slot] and at[other] == at[slot]
            return not same or self.names.raw(other) > self.names.raw(slot)

        return bisect.bisect_left(range(len(staying)), True, low, key=behind)


def percentile(players: int, rank: int) -> float:
    """Return the share of `players`, in per cent, whose rank is `rank` or worse."""
    return round(100 * (players - rank + 1) / players, 4)


def _view(numbers: Slots) -> "memoryview[int]":
    return memoryview(numbers)  # type: ignore[arg-type]


def _grown(values: Values, size: int) -> Values:
    grown = np.zeros(size, values.dtype)
    grown[: len(values)] = values
    return grown
