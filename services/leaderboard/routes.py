"""The leaderboard over HTTP.

    GET    /v1/leaderboards                                  the boards
    GET    /v1/leaderboards/{board}                          a page of a ranking
    GET    /v1/leaderboards/{board}/players/{player}         one player
    GET    /v1/leaderboards/{board}/players/{player}/around  the neighbours
    POST   /v1/leaderboards/{board}/ranks                    many players
    PUT    /v1/leaderboards/{board}                          set a board up
    DELETE /v1/leaderboards/{board}                          delete a board
    DELETE /v1/leaderboards/{board}/players/{player}         erase a player

Answers are not validated by FastAPI, because the values of a ranking are already valid.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from bellhop.contracts import leaderboards
from bellhop.contracts.leaderboards import (
    AgeAnswer,
    AroundQuery,
    BoardAnswer,
    BoardsAnswer,
    BoardsQuery,
    PageAnswer,
    PageQuery,
    PlayerAnswer,
    RankAnswer,
    RankingAnswer,
    RanksAnswer,
    RanksRequest,
    SeasonQuery,
)
from bellhop.contracts.scores import BoardSettings
from bellhop.observe.logs import get_logger
from bellhop.web.leaderboards import Board, Player, Reader, Writer, route
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


@route(router, leaderboards.LIST_BOARDS)
async def list_boards(
    request: Request,
    caller: Reader,
    query: Annotated[BoardsQuery, Query()],
) -> Response:
    """Return the boards in the order of their names."""
    service = _service(request)
    settings = service.standings.boards
    limit = query.limit
    names = service.standings.page(query.after, limit + 1, hidden=query.hidden)
    boards = [
        BoardAnswer(
            board=name,
            order=settings[name].order,
            operator=settings[name].operator,
            season=settings[name].season,
            hidden=settings[name].hidden,
            current=current_season(settings[name]) or None,
            players=len(service.standings.current(name)),
        )
        for name in names[:limit]
    ]
    last = names[limit - 1] if len(names) > limit else None
    return _json(BoardsAnswer(boards=boards, next=last, **_age(service)))


@route(router, leaderboards.SHOW_BOARD)
async def page(
    request: Request,
    caller: Reader,
    board: Board,
    query: Annotated[PageQuery, Query()],
) -> Response:
    """Return the entries after position `after`, best first."""
    service = _service(request)
    ranking, name = await _ranking(service, board, query.season)
    last = query.after + query.limit
    entries = ranking.page(query.after, query.limit)
    part = _part(service, board, name, ranking, entries)
    return _json(PageAnswer(next=last if last < len(ranking) else None, **part))


@route(router, leaderboards.SHOW_PLAYER)
async def player(
    request: Request, caller: Reader, board: Board, player: Player, query: Annotated[SeasonQuery, Query()]
) -> Response:
    """Return the entry of one player."""
    service = _service(request)
    ranking, name = await _ranking(service, board, query.season)
    entry = ranking.entry(player)
    if entry is None:
        raise _no_player(service, board, player)
    line, age = _line(ranking, entry), _age(service)
    return _json(PlayerAnswer(board=board, season=name or None, players=len(ranking), **line, **age))


@route(router, leaderboards.SHOW_AROUND)
async def around(
    request: Request,
    caller: Reader,
    board: Board,
    player: Player,
    query: Annotated[AroundQuery, Query()],
) -> Response:
    """Return the entry of one player between those of the neighbours."""
    service = _service(request)
    ranking, name = await _ranking(service, board, query.season)
    entries = ranking.around(player, query.count)
    if not entries:
        raise _no_player(service, board, player)
    return _json(_part(service, board, name, ranking, entries))


@route(router, leaderboards.SHOW_RANKS)
async def ranks(
    request: Request, caller: Reader, board: Board, body: RanksRequest, query: Annotated[SeasonQuery, Query()]
) -> Response:
    """Return the entries of those of the players that have one, best first: a ranking among friends."""
    service = _service(request)
    ranking, name = await _ranking(service, board, query.season)
    found = {player: ranking.entry(player) for player in body.players}
    entries = sorted((entry for entry in found.values() if entry is not None), key=lambda entry: entry.position)
    missing = [player for player, entry in found.items() if entry is None]
    return _json(RanksAnswer(missing=missing, **_part(service, board, name, ranking, entries)))


@route(router, leaderboards.SET_UP_BOARD)
async def configure(request: Request, caller: Writer, board: Board, body: BoardSettings) -> Response:
    """Create a board, or change the settings of one without scores. 201 for a new one."""
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


@route(router, leaderboards.DELETE_BOARD)
async def delete(request: Request, caller: Writer, board: Board) -> Response:
    """Delete a board with all its seasons. Safe to repeat; scores that are accepted later begin it again, empty."""
    service = _service(request)
    try:
        await service.standings.delete(board)
    except UnknownBoard:
        raise _no_board(service, board) from None
    log.info("deleted a board", board=board, caller=caller.name)
    return Response(status_code=204)


@route(router, leaderboards.ERASE_PLAYER)
async def erase(request: Request, caller: Writer, board: Board, player: Player) -> Response:
    """Take a player out of all seasons of a board. Scores that are still waiting will bring the player back."""
    service = _service(request)
    try:
        seasons = await service.standings.erase(board, player)
    except UnknownBoard:
        raise _no_board(service, board) from None
    if not seasons:
        raise _no_player(service, board, player)
    # Without the name of the player, which must not stay in the log.
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
    # Its first scores may be waiting; the gateway compares `as_of` with the time of the last score.
    detail = f"There is no board {board}. It begins with its first score, or with a PUT."
    return Problem(404, "Not Found", detail, extensions=_age(service))


def _no_player(service: Leaderboard, board: str, player: str) -> Problem:
    # A score that was just sent may still be waiting: the age in the answer shows that.
    return Problem(
        404,
        "Not Found",
        f"The player {player} has no score on the board {board}. One that was just sent may be `pending`.",
        extensions=_age(service),
    )


def _part(
    service: Leaderboard, board: str, season: str, ranking: AnyRanking, entries: Iterable[RankedPlayer]
) -> RankingAnswer:
    return RankingAnswer(
        board=board,
        season=season or None,
        players=len(ranking),
        entries=[_line(ranking, entry) for entry in entries],
        **_age(service),
    )


def _line(ranking: AnyRanking, entry: RankedPlayer) -> RankAnswer:
    return RankAnswer(
        position=entry.position,
        rank=entry.rank,
        percentile=ranking.percentile(entry.rank),
        player=entry.player,
        score=entry.score,
        at=from_micros(entry.at),
    )


def _age(service: Leaderboard) -> AgeAnswer:
    freshness: Freshness = service.progress.freshness()
    return AgeAnswer(as_of=freshness.as_of, lag_seconds=freshness.lag_seconds, pending=freshness.pending)


def _json(document: Mapping[str, object], status: int = 200) -> Response:
    return Response(orjson.dumps(document, option=orjson.OPT_UTC_Z), status, media_type="application/json")
