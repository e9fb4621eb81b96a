"""Scores, boards and their changes."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from bellhop.contracts.base import Contract, ErrorMessage, Id, MessageTime, Name, Text, Time

EXACT = 2**53 - 1
"""Scores are IEEE 754 doubles: every whole number up to this one is exact, and none beyond it is rounded to it."""

MAX_AHEAD = timedelta(minutes=5)
"""How far in the future the time of a score may be: clocks of clients may be fast."""

ACCEPTED_AT = "bellhop-accepted-at"
"""AMQP header of a `score.submitted`: when the gateway accepted it (RFC 3339). Without it that is the event's time."""


# A `Name` without the slash: it stands in the path of a URL, where no two programs agree on what %2F means.
PathName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"),
    ErrorMessage("must be 1 to 128 ASCII letters, digits and . _ : @ -, and begin with a letter or a digit"),
]


class Score(Contract):
    """One result of one player on one board."""

    board: PathName
    player: PathName
    score: Annotated[float, Field(ge=-EXACT, le=EXACT)]
    at: Time | None = None
    """When it was reached; the gateway fills in the time it took the score."""
    id: Id | None = None
    """The client's name for this result: the same id on the same board counts once."""


class ScoreBatch(Contract):
    """Event type `score.submitted`: one message carries many scores."""

    scores: Annotated[list[Score], Field(min_length=1, max_length=1000)]


MARK = "scores.mark"
"""Event type of a `ScoreMark`, which a gateway publishes only to the leaderboard, in order with its scores."""


class ScoreMark(Contract):
    """Every score that a gateway answered 202 before `until` was published before this message."""

    until: Time


class Order(StrEnum):
    """Whether the highest or the lowest score is first."""

    DESCENDING = "descending"
    ASCENDING = "ascending"


class Operator(StrEnum):
    """How a further score of a player combines with the result that the board has."""

    BEST = "best"
    LAST = "last"
    SUM = "sum"


class Season(StrEnum):
    """How often a board starts a new season, by the time of the score (UTC; a week begins on Monday)."""

    NONE = "none"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class BoardSettings(Contract):
    """`PUT /v1/leaderboards/{board}`. A board that was never set up counts the best score, highest first."""

    order: Annotated[Order, Field(strict=False)] = Order.DESCENDING
    operator: Annotated[Operator, Field(strict=False)] = Operator.BEST
    season: Annotated[Season, Field(strict=False)] = Season.NONE
    hidden: bool = False
    """True: the board is not listed, and its changes are not announced. It can be read by its name."""


class TopPlayer(Contract):
    """One of the first players of a ranking."""

    position: int
    """1, 2, 3, …: unique."""
    rank: int
    """1, 1, 3, …: equal scores share the better number."""
    player: Name
    score: float
    at: MessageTime


class LeaderboardChanged(Contract):
    """Event type `leaderboard.changed`, shown on the channel `leaderboard:<board>`: results of a board changed.

    It has the whole top ten, so a reader that missed earlier events needs only the latest.
    """

    board: Name
    season: Text | None = None
    """Which season it was, on a board that has seasons; a late score may change a past one."""
    top: list[TopPlayer]
    """The first ten."""
    entered: list[Name]
    """Players that entered the top ten, best first."""
    left: list[Name]
    """Players that left the top ten."""
    changed: int
    """Number of players whose result changed."""
    players: int
    as_of: MessageTime | None
    """Every score that was answered 202 before this time is included; None: not known yet."""
