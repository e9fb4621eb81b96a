"""A ranking of few players: the interface of `Ranking` (ranking.py), at a tenth of its fixed cost.

There may be a hundred thousand boards, and most have ten to a hundred players. Here a ranking is three objects: the
names in order of position, as one text with a line for each, and two arrays. Every search is a scan, which takes less
than a microsecond at this size.
"""

from array import array
from bisect import bisect_left
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np

from bellhop.contracts.scores import Order
from services.leaderboard.ranking import RankedPlayer, Ranking, percentile
from services.leaderboard.scoring import PlayerResult, ResultColumns

SMALL = 128
"""Players of a small ranking, at most."""

_FEW = 8  # from this many changes on, sorting all players is cheaper than moving each


@dataclass(frozen=True, slots=True, eq=False)
class SmallRanking:
    """An immutable snapshot. No name contains a line end."""

    order: Order
    names: bytes
    """Names by position, with a line end before and behind each."""
    keys: "array[float]"
    """Keys (scoring.py) by position, ascending."""
    at: "array[int]"
    """Times by position, in microseconds since 1970."""

    @classmethod
    def empty(cls, order: Order) -> Self:
        """Return a ranking without players."""
        return cls(order, b"\n", array("d"), array("q"))

    @classmethod
    def of(cls, order: Order, lines: list[tuple[float, int, bytes]]) -> Self:
        """Return the ranking of some players: key, time and name of each."""
        if not lines:
            return cls.empty(order)
        keys, at, names = zip(*sorted(lines), strict=True)
        return cls(order, b"\n%b\n" % b"\n".join(names), array("d", keys), array("q", at))

    def __len__(self) -> int:
        return len(self.keys)

    def rank(self, player: str) -> int | None:
        """Return the competition rank of `player`, or None."""
        place = self._place(player.encode())
        return bisect_left(self.keys, self.keys[place]) + 1 if place >= 0 else None

    def entry(self, player: str) -> RankedPlayer | None:
        """Return `player` with position and score, or None."""
        place = self._place(player.encode())
        return self.page(place, 1)[0] if place >= 0 else None

    def page(self, after: int, limit: int) -> list[RankedPlayer]:
        """Return up to `limit` players behind position `after`."""
        entries: list[RankedPlayer] = []
        for place, name in enumerate(islice(self._lines(), after, after + limit), start=after):
            key = self.keys[place]
            rank = bisect_left(self.keys, key) + 1
            score = (key if self.order is Order.ASCENDING else -key) + 0.0
            entries.append(RankedPlayer(place + 1, rank, name.decode(), score, self.at[place]))
        return entries

    def around(self, player: str, count: int) -> list[RankedPlayer]:
        """Return `player` with up to `count` players before and behind it; empty if there is no such player."""
        place = self._place(player.encode())
        if place < 0:
            return []
        first = max(0, place - count)
        return self.page(first, place + count + 1 - first)

    def percentile(self, rank: int) -> float:
        """Return the share of players, in per cent, whose rank is `rank` or worse; the first have 100."""
        return percentile(len(self), rank)

    def top(self, count: int) -> list[str]:
        """Return the names of the first `count` players."""
        return [name.decode() for name in islice(self._lines(), count)]

    def result(self, player: str) -> PlayerResult | None:
        """Return the result of `player`, or None."""
        place = self._place(player.encode())
        return (self.keys[place], self.at[place]) if place >= 0 else None

    def with_results(self, results: dict[str, PlayerResult]) -> Self:
        """Return the next snapshot, with these results; other players keep theirs."""
        if len(results) > _FEW:
            kept = [
                (key, at, name)
                for key, at, name in zip(self.keys, self.at, self._lines(), strict=True)
                if name.decode() not in results
            ]
            return self.of(self.order, kept + [(key, at, player.encode()) for player, (key, at) in results.items()])
        names, keys, moments = self.names, self.keys[:], self.at[:]
        for player, (key, at) in results.items():
            name = player.encode()
            names = _without(name, names, keys, moments)
            place = bisect_left(keys, key)
            while place < len(keys) and keys[place] == key and moments[place] < at:
                place += 1
            offset = _offset(names, place)
            while place < len(keys) and (keys[place], moments[place]) == (key, at):
                end = names.index(b"\n", offset)
                if names[offset:end] > name:
                    break
                place, offset = place + 1, end + 1
            keys.insert(place, key)
            moments.insert(place, at)
            names = b"%b%b\n%b" % (names[:offset], name, names[offset:])
        return type(self)(self.order, names, keys, moments)

    def without(self, player: str) -> Self:
        """Return the next snapshot, in which `player` has no result."""
        keys, at = self.keys[:], self.at[:]
        names = _without(player.encode(), self.names, keys, at)
        return type(self)(self.order, names, keys, at)

    def enlarged(self) -> Ranking:
        """Return the same ranking as a `Ranking`, which holds any number of players."""
        large = Ranking.empty(self.order, len(self))
        slots = large.names.add_new([name.decode() for name in self._lines()])
        keys, at = np.array(self.keys, np.float64), np.array(self.at, np.int64)
        return large.with_results(ResultColumns(slots, keys, at, np.arange(len(slots))))

    def _lines(self) -> list[bytes]:
        return self.names.split(b"\n")[1:-1]

    def _place(self, name: bytes) -> int:
        begin = self.names.find(b"\n%b\n" % name)
        return self.names.count(b"\n", 0, begin) if begin >= 0 else -1


AnyRanking = Ranking | SmallRanking


def as_large(ranking: AnyRanking) -> Ranking:
    """Return the same ranking as a `Ranking`."""
    return ranking if isinstance(ranking, Ranking) else ranking.enlarged()


def as_small(ranking: AnyRanking) -> SmallRanking:
    """Return the same ranking, of at most `SMALL` players, as a `SmallRanking`."""
    if isinstance(ranking, SmallRanking):
        return ranking
    slots = ranking.players.tolist()
    keys = ranking.keys[ranking.players].tolist()
    at = ranking.at[ranking.players].tolist()
    lines = [(key, moment, ranking.names.raw(slot)) for key, moment, slot in zip(keys, at, slots, strict=True)]
    return SmallRanking.of(ranking.order, lines)


def _without(name: bytes, names: bytes, keys: "array[float]", at: "array[int]") -> bytes:
    """Take a player out of `keys` and `at`; return `names` without the name."""
    begin = names.find(b"\n%b\n" % name)
    if begin < 0:
        return names
    place = names.count(b"\n", 0, begin)
    del keys[place], at[place]
    return names[:begin] + names[begin + len(name) + 1 :]


def _offset(names: bytes, place: int) -> int:
    """Return the index in `names` at which the name at `place` begins."""
    return len(names) - len(names.split(b"\n", place + 1)[-1])
