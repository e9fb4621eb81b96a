"""The leaderboard over HTTP.

    GET    /v1/leaderboards                                  the boards
    GET    /v1/leaderboards/{board}                          a page of a ranking
    GET    /v1/leaderboards/{board}/players/{player}         one player
    GET    /v1/leaderboards/{board}/players/{player}/around  the neighbours
    POST   /v1/leaderboards/{board}/ranks                    many players
    PUT    /v1/leaderboards/{board}                          set a board up
    DELETE /v1/leaderboards/{board}                          delete a board
    DELETE /v1/leaderboards/{board}/players/{player}         erase a player

Answers are made by hand: what comes out of a ranking needs no second validation.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from bellhop.contracts.base import Contract, Name
from bellhop.contracts.scores import BoardSettings, Operator, Order, PathName, Season
from bellhop.observe.logs import get_logger
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.plain_route import PlainRoute
from bellhop.web.problems import Problem
from services.leaderboard.errors import BoardInUse, TooManyBoards, UnknownBoard
from services.leaderboard.parts import Leaderboard
from services.leaderboard.progress import Freshness
from services.leaderboard.ranking import RankedPlayer
from services.leaderboard.scoring import SEASON_FORMS, current_season, from_micros
from services.leaderboard.small import AnyRanking

log = get_logger(__name__)

router = APIRouter(route_class=PlainRoute, tags=["leaderboards"])

Reader = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_WRITE))]
Board = Annotated[PathName, Path(description="name of the board")]
Player = Annotated[PathName, Path(description="name of the player")]
SeasonName = Annotated[
    str | None,
    Query(max_length=16, description="2026-11-21, 2026-W47 or 2026-11; without it the season of now"),
]
Limit = Annotated[int, Query(ge=1, le=1000, description="entries at most")]


class Line(BaseModel):
    """One line of a ranking."""

    position: int = Field(description="1, 2, 3, …: unique; of equal scores the one reached first stands before")
    rank: int = Field(description="1, 1, 3, …: equal scores share the better number")
    percentile: float = Field(description="share of players, in per cent, who stand no better; the first have 100")
    player: str
    score: float
    at: datetime = Field(description="when this score was reached")


class Age(BaseModel):
    """What every answer says about its age."""

    as_of: datetime | None = Field(description="every score that was answered 202 before this time is counted")
    lag_seconds: float | None = Field(description="how long ago `as_of` was")
    pending: int | None = Field(
        description="messages with scores that wait here; null: this replica does not take them off the queue"
    )


class RankingAnswer(Age):
    """A part of a ranking."""

    board: str
    season: str | None
    players: int = Field(description="how many the whole ranking has")
    entries: list[Line]


class PageAnswer(RankingAnswer):
    """A page of a ranking."""

    next: int | None = Field(description="give it as `after` for the next page; null: this was the last")


class PlayerAnswer(Age, Line):
    """Where one player stands."""

    board: str
    season: str | None
    players: int


class RanksAnswer(RankingAnswer):
    """Where many players stand, best first."""

    missing: list[str] = Field(description="who has no score")


class BoardLine(BaseModel):
    """One board."""

    board: str
    order: Order
    operator: Operator
    season: Season
    hidden: bool
    current: str | None = Field(description="name of the season of now, on a board that has seasons")
    players: int = Field(description="in the season of now")


class BoardsAnswer(Age):
    """The boards, by name."""

    boards: list[BoardLine]
    next: str | None = Field(description="give it as `after` for the next page; null: this was the last")


class RanksRequest(Contract):
    """Which players to look up."""

    players: Annotated[list[Name], Field(min_length=1, max_length=1000)]


@router.get("/v1/leaderboards", summary="List the boards", responses={200: {"model": BoardsAnswer}})
async def list_boards(
    request: Request,
    caller: Reader,
    limit: Limit = 100,
    after: Annotated[str, Query(max_length=128, description="name of the last board of the page before")] = "",
    hidden: Annotated[bool, Query(description="true: the hidden ones, too")] = False,
) -> Response:
    """Return the boards in the order of their names."""
    service = _service(request)
    settings = service.standings.boards
    names = service.standings.page(after, limit + 1, hidden=hidden)
    boards = [
        {
            "board": name,
            **settings[name].model_dump(mode="json"),
            "current": current_season(settings[name]) or None,
            "players": len(service.standings.current(name)),
        }
        for name in names[:limit]
    ]
    return _json({"boards": boards, "next": names[limit - 1] if len(names) > limit else None} | _age(service))


@router.get("/v1/leaderboards/{board}", summary="The top of a board", responses={200: {"model": PageAnswer}})
async def page(
    request: Request,
    caller: Reader,
    board: Board,
    limit: Limit = 10,
    after: Annotated[int, Query(ge=0, le=2**31, description="position of the last entry of the page before")] = 0,
    season: SeasonName = None,
) -> Response:
    """Return the entries behind position `after`, best first."""
    service = _service(request)
    ranking, name = await _ranking(service, board, season)
    last = after + limit
    return _entries(
        service, board, name, ranking, ranking.page(after, limit), next=last if last < len(ranking) else None
    )


@router.get(
    "/v1/leaderboards/{board}/players/{player}",
    summary="Where a player stands",
    responses={200: {"model": PlayerAnswer}},
)
async def player(request: Request, caller: Reader, board: Board, player: Player, season: SeasonName = None) -> Response:
    """Return the entry of one player."""
    service = _service(request)
    ranking, name = await _ranking(service, board, season)
    entry = ranking.entry(player)
    if entry is None:
        raise _no_player(service, board, player)
    head = {"board": board, "season": name or None, "players": len(ranking)}
    return _json(_line(ranking, entry) | head | _age(service))


@router.get(
    "/v1/leaderboards/{board}/players/{player}/around",
    summary="Who stands next to a player",
    responses={200: {"model": RankingAnswer}},
)
async def around(
    request: Request,
    caller: Reader,
    board: Board,
    player: Player,
    count: Annotated[int, Query(ge=0, le=500, description="entries before and behind the player, each")] = 5,
    season: SeasonName = None,
) -> Response:
    """Return the entry of one player between those of the neighbours."""
    service = _service(request)
    ranking, name = await _ranking(service, board, season)
    entries = ranking.around(player, count)
    if not entries:
        raise _no_player(service, board, player)
    return _entries(service, board, name, ranking, entries)


@router.post(
    "/v1/leaderboards/{board}/ranks", summary="Where many players stand", responses={200: {"model": RanksAnswer}}
)
async def ranks(
    request: Request, caller: Reader, board: Board, body: RanksRequest, season: SeasonName = None
) -> Response:
    """Return the entries of those of the players that have one, best first: a ranking among friends."""
    service = _service(request)
    ranking, name = await _ranking(service, board, season)
    found = {player: ranking.entry(player) for player in body.players}
    entries = sorted((entry for entry in found.values() if entry is not None), key=lambda entry: entry.position)
    missing = [player for player, entry in found.items() if entry is None]
    return _entries(service, board, name, ranking, entries, missing=missing)


@router.put("/v1/leaderboards/{board}", summary="Set a board up", responses={200: {"model": BoardSettings}})
async def configure(request: Request, caller: Writer, board: Board, body: BoardSettings) -> Response:
    """Make a board, or set up anew one that has no scores. 201 for a new one."""
    service = _service(request)
    try:
        new = await service.standings.configure(board, body)
    except TooManyBoards:
        raise Problem(
            422,
            "Unprocessable Content",
            f"The board {board} would be a new one, and there are as many boards as there may be"
            " (BELLHOP_BOARDS_LIMIT). Delete one first.",
        ) from None
    except BoardInUse:
        raise Problem(
            409,
            "Conflict",
            f"The board {board} has scores, which another order, operator or season would have counted differently."
            " Set up a board with another name, or delete this one first.",
        ) from None
    log.info("set up a board", board=board, caller=caller.name, **body.model_dump(mode="json"))
    return _json(body.model_dump(mode="json"), 201 if new else 200)


@router.delete("/v1/leaderboards/{board}", summary="Delete a board", status_code=204)
async def delete(request: Request, caller: Writer, board: Board) -> Response:
    """Delete a board with all its seasons. Safe to repeat; scores that are accepted later begin it again, empty."""
    service = _service(request)
    try:
        await service.standings.delete(board)
    except UnknownBoard:
        raise _no_board(service, board) from None
    log.info("deleted a board", board=board, caller=caller.name)
    return Response(status_code=204)


@router.delete("/v1/leaderboards/{board}/players/{player}", summary="Erase a player", status_code=204)
async def erase(request: Request, caller: Writer, board: Board, player: Player) -> Response:
    """Take a player out of all seasons of a board. Scores that are still waiting will bring the player back."""
    service = _service(request)
    try:
        seasons = await service.standings.erase(board, player)
    except UnknownBoard:
        raise _no_board(service, board) from None
    if not seasons:
        raise _no_player(service, board, player)
    # Not who: an erasure that leaves the name in the log is none.
    log.info("erased a player", board=board, seasons=seasons, caller=caller.name)
    return Response(status_code=204)


def _service(request: Request) -> Leaderboard:
    service: Leaderboard = request.app.state.leaderboard
    if not service.standings.loaded:
        raise Problem(
            503,
            "Service Unavailable",
            "The rankings are being read from the database. Ask again in a moment.",
            headers={"Retry-After": "1"},
        )
    return service


async def _ranking(service: Leaderboard, board: str, season: str | None) -> tuple[AnyRanking, str]:
    """Return a ranking and the name of its season."""
    settings = service.standings.boards.get(board)
    if settings is None:
        raise _no_board(service, board)
    if season is None:
        return service.standings.current(board), current_season(settings)
    form = SEASON_FORMS[settings.season]
    if not form:
        raise _bad_season(f"The board {board} has no seasons. Leave `season` out.")
    if not re.fullmatch(form, season, re.ASCII):
        example = current_season(settings)
        raise _bad_season(f"The seasons of the board {board} are {settings.season.value}. Name one like {example}.")
    try:
        return await service.standings.past(board, season), season
    except UnknownBoard:
        raise _no_board(service, board) from None


def _bad_season(detail: str) -> Problem:
    return Problem(
        422, "Unprocessable Content", detail, extensions={"errors": [{"pointer": "query:season", "detail": detail}]}
    )


def _no_board(service: Leaderboard, board: str) -> Problem:
    # Its first scores may be waiting; the gateway, which knows, looks at `as_of`.
    detail = f"There is no board {board}. It begins with its first score, or with a PUT."
    return Problem(404, "Not Found", detail, extensions=_age(service))


def _no_player(service: Leaderboard, board: str, player: str) -> Problem:
    # A score that was just sent may still be waiting: the caller should be able to see that.
    return Problem(
        404,
        "Not Found",
        f"The player {player} has no score on the board {board}. One that was just sent may be `pending`.",
        extensions=_age(service),
    )


def _entries(
    service: Leaderboard, board: str, season: str, ranking: AnyRanking, entries: Iterable[RankedPlayer], **more: Any
) -> Response:
    head = {"board": board, "season": season or None, "players": len(ranking)}
    return _json(head | {"entries": [_line(ranking, entry) for entry in entries]} | more | _age(service))


def _line(ranking: AnyRanking, entry: RankedPlayer) -> dict[str, Any]:
    return {
        "position": entry.position,
        "rank": entry.rank,
        "percentile": ranking.percentile(entry.rank),
        "player": entry.player,
        "score": entry.score,
        "at": from_micros(entry.at),
    }


def _age(service: Leaderboard) -> dict[str, Any]:
    freshness: Freshness = service.progress.freshness()
    return {"as_of": freshness.as_of, "lag_seconds": freshness.lag_seconds, "pending": freshness.pending}


def _json(document: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_UTC_Z), status, media_type="application/json")
