"""Scores and boards."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from bellhop.contracts.base import Contract, Id, Name, Time

EXACT = 2**53
"""Scores are IEEE 754 doubles: every whole number up to this one is exact, so nothing beyond it is taken."""


class Score(Contract):
    """One result of one player on one board."""

    board: Name
    player: Name
    score: Annotated[float, Field(ge=-EXACT, le=EXACT)]
    at: Time | None = None
    """When it was reached; the gateway fills in the time it took the score."""
    id: Id | None = None
    """The client's name for this result: the same id on the same board counts once."""


class ScoreBatch(Contract):
    """Event type `score.submitted`: one message carries many scores."""

    scores: Annotated[list[Score], Field(min_length=1, max_length=1000)]


class Order(StrEnum):
    """Which end of the board is the top."""

    DESCENDING = "descending"
    ASCENDING = "ascending"


class Operator(StrEnum):
    """How a further score of the same player joins what is there."""

    BEST = "best"
    LAST = "last"
    SUM = "sum"


class Season(StrEnum):
    """How often a board starts anew, by the time of the score (UTC; a week begins on Monday)."""

    NONE = "none"
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"


class BoardSettings(Contract):
    """`PUT /v1/leaderboards/{board}`. A board that was never set up counts the best score, highest first."""

    order: Annotated[Order, Field(strict=False)] = Order.DESCENDING
    operator: Annotated[Operator, Field(strict=False)] = Operator.BEST
    season: Annotated[Season, Field(strict=False)] = Season.NONE
