"""What the settings of a board mean: which season a score falls into, and how it joins what is there.

Inside this service a time is a whole number of microseconds since 1970 (UTC), and a score is a *key*: the score
itself on a board where the lowest wins, its negative where the highest does. So the lesser key is always the better.
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

DAY = 86_400_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

ALL_TIME = ""
"""The season of a board that never starts anew."""

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
    """Return the name of the season that `day` (UTC) lies in: 2026-11-21, 2026-W47 (ISO 8601, 2.2.10), 2026-11."""
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
    """Return the name of the season that a score reached now falls into."""
    return season_of(datetime.now(UTC).date(), settings.season)


def current_seasons() -> list[str]:
    """Return the names of the seasons of all kinds that a score reached now falls into."""
    today = datetime.now(UTC).date()
    return [season_of(today, season) for season in Season]


def split_by_season(at: Times, season: Season) -> dict[str, NDArray[np.intp]]:
    """Return, for each season that occurs in `at`, the indices of its scores."""
    if season is Season.NONE:
        return {ALL_TIME: np.arange(len(at))}
    days, day_of = np.unique(at // DAY, return_inverse=True)
    names = [season_of(EPOCH.date() + timedelta(days=int(day)), season) for day in days]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    season_number = np.array([numbers[name] for name in names])[day_of]
    return {name: np.flatnonzero(season_number == number) for name, number in numbers.items()}


Result = tuple[float, int]
"""Key and time: what one player has."""


def joined(operator: Operator, held: Result | None, new: Result) -> Result:
    """Join one further score of a player with what is `held`: `collapse` and `join` for a single one."""
    if held is None:
        return new
    if operator is Operator.BEST:
        return min(held, new)
    return new if new[1] >= held[1] else held


@dataclass(frozen=True, slots=True)
class Results:
    """At most one result for each player: who (`slots`), how good (`keys`), when (`at`)."""

    slots: Slots
    keys: Floats
    at: Times
    example: NDArray[np.intp]
    """For each: the index of one score of this player in what was collapsed."""

    def only(self, wanted: Flags) -> Self:
        """Return those where `wanted` is true."""
        return type(self)(self.slots[wanted], self.keys[wanted], self.at[wanted], self.example[wanted])


def to_keys(scores: Floats, order: Order) -> Floats:
    """Return the keys of `scores`; applied twice it gives the scores back. Zero never carries a sign."""
    return (scores if order is Order.ASCENDING else -scores) + 0.0


def collapse(operator: Operator, slots: Slots, keys: Floats, at: Times) -> Results:
    """Join the scores of each player among themselves, on a board that takes the best or the last (sums: sums.py).

    `best` takes score and time as one pair; of equal scores the first counts, and the sequence makes no difference.
    `last` takes the latest; of two at the same time the one that stands later in the sequence.
    """
    if operator is Operator.BEST:
        sequence = np.lexsort((at, keys, slots))
    else:
        sequence = np.lexsort((-np.arange(len(slots)), -at, slots))
    first = np.ones(len(slots), np.bool_)
    first[1:] = slots[sequence][1:] != slots[sequence][:-1]
    example = sequence[first]
    return Results(slots[example], keys[example], at[example], example)


def join(operator: Operator, new: Results, known: Flags, keys: Floats, at: Times) -> Results:
    """Join `new` results with what the board holds for the same players, and return those that change it.

    `keys` and `at` are what the board holds where `known` is true, and arbitrary elsewhere.
    """
    if operator is Operator.BEST:
        return new.only(~known | (new.keys < keys) | ((new.keys == keys) & (new.at < at)))
    return new.only(~known | (new.at > at) | ((new.at == at) & (new.keys != keys)))
