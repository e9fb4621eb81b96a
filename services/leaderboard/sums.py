"""Sums that depend neither on the sequence of their addends nor on how they are batched.

Internally a total is a whole number of millionths. A score counts with its first 15 significant digits, which are those
that a decimal number keeps as a double, and at most 6 of them behind the point. The score that is shown and stored is
the double next to the total. Below `EXACT` that double identifies the total; beyond, the difference is stored as
`rest`.

A total was reached at the time of the last addend that changed it. Before any did, it is 0 since the first addend; that
state has a `rest` of its own (`ZEROS`), because a total can also come back to 0.
"""

import math
from bisect import bisect_right
from typing import NamedTuple

from services.leaderboard.scoring import PlayerResult

STEP = 10**6
PLACES = 6
DIGITS = 15
EXACT = 2**53 / STEP
ZEROS = 1

_POWERS = [int(10.0**exponent) for exponent in range(DIGITS + 2)]


class Total(NamedTuple):
    """The sum of the scores of one player."""

    millionths: int
    at: int
    """Time of the last addend that changed it, in microseconds since 1970."""
    zeros: bool
    """Whether all addends were 0."""


def millionths(score: float) -> int:
    """Return `score` in millionths."""
    whole = math.trunc(score)
    rest = score - whole
    if not rest:
        return whole * STEP
    places = min(PLACES, max(0, DIGITS - bisect_right(_POWERS, abs(whole))))
    return whole * STEP + round(rest * _POWERS[places]) * _POWERS[PLACES - places]


def total_of(held: PlayerResult, rest: int) -> Total:
    """Return the total that is shown as `held` and stored with `rest`."""
    key, at = held
    if not key and rest == ZEROS:
        return Total(0, at, zeros=True)
    return Total(millionths(key) + rest, at, zeros=False)


def add(total: Total | None, score: float, at: int) -> Total:
    """Return the total with one more addend."""
    addend = millionths(score)
    if total is None:
        return Total(addend, at, zeros=not addend)
    if not addend:
        return total._replace(at=min(total.at, at)) if total.zeros else total
    if total.zeros:
        return Total(addend, at, zeros=False)
    return Total(total.millionths + addend, max(total.at, at), zeros=False)


def shown(total: Total) -> tuple[PlayerResult, int]:
    """Return the result that shows a total, and its rest."""
    key = total.millionths / STEP  # the nearest double
    rest = ZEROS if total.zeros else total.millionths - millionths(key)
    return (key, total.at), rest


def is_exact(held: PlayerResult) -> bool:
    """Return whether `held` identifies its total, so that the rest is 0."""
    return 0 < abs(held[0]) < EXACT
