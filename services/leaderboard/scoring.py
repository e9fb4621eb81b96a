"""Arithmetic of scores: which season a score belongs to, and how it combines with the result that the board has.

Inside this service a time is a whole number of microseconds since 1970 (UTC), and a score is a *key*: the score itself
on a board where the lowest score is first, its negative where the highest is. The lesser key is always the better one.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bellhop.contracts.scores import BoardSettings, Operator, Order, Season

Floats = NDArray[np.float64]
Times = NDArray[np.int64]
Slots = NDArray[np.int32]
Flags = NDArray[np.bool_]

DAY_MICROSECONDS = 86_400_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

ALL_TIME = ""
"""The only season of a board without seasons."""

SEASON_FORMS = {
    Season.NONE: "",
    Season.DAILY: r"\d{4}-\d\d-\d\d",
    Season.WEEKLY: r"\d{4}-W\d\d",
    Season.MONTHLY: r"\d{4}-\d\d",
}


def to_micros(time: datetime) -> int:
    """Return `time` in microseconds since 1970."""
    return (time - EPOCH) // MICROSECOND


def from_micros(micros: int) -> datetime:
    """Return the time that lies `micros` microseconds after 1970."""
    return EPOCH + micros * MICROSECOND


def season_of(day: date, season: Season) -> str:
    """Return the name of the season of `day` (UTC), like 2026-11-21, 2026-W47 (ISO 8601, 2.2.10) or 2026-11."""
    match season:
        case Season.NONE:
            return ALL_TIME
        case Season.DAILY:
            return day.isoformat()
        case Season.WEEKLY:
            year, week, _ = day.isocalendar()
            return f"{year:04d}-W{week:02d}"
        case Season.MONTHLY:
            return f"{day.year:04d}-{day.month:02d}"


def current_season(settings: BoardSettings) -> str:
    """Return the name of the current season."""
    return season_of(datetime.now(UTC).date(), settings.season)


def current_seasons() -> list[str]:
    """Return the names of the current seasons of all kinds."""
    today = datetime.now(UTC).date()
    return [season_of(today, season) for season in Season]


def split_by_season(at: Times, season: Season) -> dict[str, NDArray[np.intp]]:
    """Return, for each season that occurs in `at`, the indices of its scores."""
    if season is Season.NONE:
        return {ALL_TIME: np.arange(len(at))}
    days, day_of = np.unique(at // DAY_MICROSECONDS, return_inverse=True)
    names = [season_of(EPOCH.date() + timedelta(days=int(day)), season) for day in days]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    season_number = np.array([numbers[name] for name in names])[day_of]
    return {name: np.flatnonzero(season_number == number) for name, number in numbers.items()}


PlayerResult = tuple[float, int]
"""Key and time of one player."""


def joined(operator: Operator, held: PlayerResult | None, new: PlayerResult) -> PlayerResult:
    """Return the result of a player after one more score: `collapse` and `join` for a single score."""
    if held is None:
        return new
    if operator is Operator.BEST:
        return min(held, new)
    return new if new[1] >= held[1] else held


@dataclass(frozen=True, slots=True)
class ResultColumns:
    """At most one result for each player, in columns: slot, key and time."""

    slots: Slots
    keys: Floats
    at: Times
    example: NDArray[np.intp]
    """For each: the index of the score that gave the result, among the scores that were collapsed."""

    def only(self, wanted: Flags) -> Self:
        """Return the results where `wanted` is true."""
        return type(self)(self.slots[wanted], self.keys[wanted], self.at[wanted], self.example[wanted])


def to_keys(scores: Floats, order: Order) -> Floats:
    """Return the keys of `scores`; applied twice it gives the scores back. Zero never carries a sign."""
    return (scores if order is Order.ASCENDING else -scores) + 0.0


def collapse(operator: Operator, slots: Slots, keys: Floats, at: Times) -> ResultColumns:
    """Combine the scores of each player to one result, on a board of the best or the last scores (sums: sums.py).

    `best` takes the best score; of equal scores the earliest, in any sequence.
    `last` takes the latest score; of two at the same time the later one in the sequence.
    """
    if operator is Operator.BEST:
        sequence = np.lexsort((at, keys, slots))
    else:
        sequence = np.lexsort((-np.arange(len(slots)), -at, slots))
    first = np.ones(len(slots), np.bool_)
    first[1:] = slots[sequence][1:] != slots[sequence][:-1]
    example = sequence[first]
    return ResultColumns(slots[example], keys[example], at[example], example)


def join(operator: Operator, new: ResultColumns, known: Flags, keys: Floats, at: Times) -> ResultColumns:
    """Return those of `new` that replace the results which the board has for the same players.

    `keys` and `at` are the results of the board where `known` is true, and arbitrary elsewhere.
    """
    if operator is Operator.BEST:
        return new.only(~known | (new.keys < keys) | ((new.keys == keys) & (new.at < at)))
    return new.only(~known | (new.at > at) | ((new.at == at) & (new.keys != keys)))
