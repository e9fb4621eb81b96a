"""The HTTP operations of leaderboards, declared once: the leaderboard answers them, and the gateway forwards them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from bellhop.contracts.base import Contract, Name
from bellhop.contracts.scores import Operator, Order, Season

MAX_LISTED = 1000


class _Query(BaseModel):
    """Query parameters."""

    model_config = ConfigDict(frozen=True)


class SeasonQuery(_Query):
    """Which season is asked about."""

    season: Annotated[str, Field(max_length=16)] | None = Field(
        None, description="2026-11-21, 2026-W47 or 2026-11; without it the current season"
    )


class BoardsQuery(_Query):
    """`GET /v1/leaderboards`."""

    limit: int = Field(100, ge=1, le=MAX_LISTED, description="entries at most")
    after: str = Field("", max_length=128, description="name of the last board of the page before")
    hidden: bool = Field(False, description="true: the hidden ones, too")


class PageQuery(SeasonQuery):
    """`GET /v1/leaderboards/{board}`."""

    limit: int = Field(10, ge=1, le=MAX_LISTED, description="entries at most")
    after: int = Field(0, ge=0, le=2**31, description="position of the last entry of the page before")


class AroundQuery(SeasonQuery):
    """`GET /v1/leaderboards/{board}/players/{player}/around`."""

    count: int = Field(5, ge=0, le=500, description="entries before and behind the player, each")


class RanksRequest(Contract):
    """`POST /v1/leaderboards/{board}/ranks`."""

    players: Annotated[list[Name], Field(min_length=1, max_length=MAX_LISTED)]


class RankAnswer(TypedDict):
    """One line of a ranking."""

    position: Annotated[int, Field(description="1, 2, 3, …: unique; of equal scores the one reached first is before")]
    rank: Annotated[int, Field(description="1, 1, 3, …: equal scores share the better number")]
    percentile: Annotated[
        float, Field(description="share of players, in per cent, who stand no better; the first have 100")
    ]
    player: str
    score: float
    at: Annotated[datetime, Field(description="when this score was reached")]


class AgeAnswer(TypedDict):
    """How old an answer is."""

    as_of: Annotated[
        datetime | None, Field(description="every score that was answered 202 before this time is counted")
    ]
    lag_seconds: Annotated[float | None, Field(description="how long ago `as_of` was")]
    pending: Annotated[
        int | None,
        Field(description="messages with scores that wait here; null: this replica does not take them off the queue"),
    ]


class RankingAnswer(AgeAnswer):
    """A part of a ranking."""

    board: str
    season: str | None
    players: Annotated[int, Field(description="how many the whole ranking has")]
    entries: list[RankAnswer]


class PageAnswer(RankingAnswer):
    """A page of a ranking."""

    next: Annotated[int | None, Field(description="give it as `after` for the next page; null: this was the last")]


class PlayerAnswer(RankAnswer, AgeAnswer):
    """Where one player stands."""

    board: str
    season: str | None
    players: int


class RanksAnswer(RankingAnswer):
    """Where many players stand, best first."""

    missing: Annotated[list[str], Field(description="who has no score")]


class BoardSettingsAnswer(TypedDict):
    """How a board counts."""

    order: Order
    operator: Operator
    season: Season
    hidden: bool


class BoardAnswer(BoardSettingsAnswer):
    """One board."""

    board: str
    current: Annotated[str | None, Field(description="name of the current season, on a board that has seasons")]
    players: Annotated[int, Field(description="in the current season")]


class BoardsAnswer(AgeAnswer):
    """The boards, by name."""

    boards: list[BoardAnswer]
    next: Annotated[str | None, Field(description="give it as `after` for the next page; null: this was the last")]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation, as both faces document it."""

    method: str
    path: str
    summary: str
    description: str
    answers: dict[int, Any]
    """The type of the answer by status; None where there is no body."""


_BOARD = "/v1/leaderboards/{board}"
_PLAYER = _BOARD + "/players/{player}"

LIST_BOARDS = Operation(
    "GET",
    "/v1/leaderboards",
    "List the boards",
    "Return the boards in the order of their names.",
    {200: BoardsAnswer},
)
SHOW_BOARD = Operation(
    "GET",
    _BOARD,
    "The top of a board",
    "Return the entries behind position `after`, best first. A board whose first scores still wait is empty.",
    {200: PageAnswer},
)
SHOW_PLAYER = Operation("GET", _PLAYER, "Where a player stands", "Return the entry of one player.", {200: PlayerAnswer})
SHOW_AROUND = Operation(
    "GET",
    _PLAYER + "/around",
    "Who stands next to a player",
    "Return the entry of one player between those of the neighbours.",
    {200: RankingAnswer},
)
SHOW_RANKS = Operation(
    "POST",
    _BOARD + "/ranks",
    "Where many players stand",
    "Return the entries of those of the players that have one, best first: a ranking among friends.",
    {200: RanksAnswer},
)
SET_UP_BOARD = Operation(
    "PUT",
    _BOARD,
    "Set a board up",
    "Make a board (201), or change the settings of one that has no scores (200).",
    {200: BoardSettingsAnswer, 201: BoardSettingsAnswer},
)
DELETE_BOARD = Operation(
    "DELETE",
    _BOARD,
    "Delete a board",
    "Delete a board with all its seasons. Safe to repeat; scores that are accepted later begin it again, empty.",
    {204: None},
)
ERASE_PLAYER = Operation(
    "DELETE",
    _PLAYER,
    "Erase a player",
    "Take a player out of all seasons of a board. Scores that are still waiting will bring the player back.",
    {204: None},
)
