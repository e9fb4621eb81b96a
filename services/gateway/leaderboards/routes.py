"""Leaderboards: answered by the leaderboard service, under the gateway's address and keys.

The names are validated here as well: a path is forwarded unchanged, and `..` in it would be another route.
"""

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts import leaderboards
from bellhop.contracts.leaderboards import (
    AroundQuery,
    BoardsQuery,
    PageAnswer,
    PageQuery,
    RanksRequest,
    SeasonQuery,
)
from bellhop.contracts.scores import BoardSettings
from bellhop.sql.database import DatabaseUnavailable
from bellhop.web.auth import Scope
from bellhop.web.leaderboards import Board, Player, Reader, Writer, route
from bellhop.web.problems import unavailable
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.leaderboards.forwarding import forward
from services.gateway.parts import gateway

router = APIRouter(route_class=IdempotentRoute, tags=["leaderboards"])

APPLIED_WITHIN = timedelta(seconds=15)
"""A new board is shown as empty until its scores are applied: `as_of` is then later than its creation by so much."""


@route(router, leaderboards.LIST_BOARDS)
async def boards(request: Request, caller: Reader, query: Annotated[BoardsQuery, Query()]) -> Response:
    """Forward a read of all boards."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@route(router, leaderboards.SHOW_BOARD)
async def top(request: Request, caller: Reader, board: Board, query: Annotated[PageQuery, Query()]) -> Response:
    """Forward a read of one board. A board whose first scores are still waiting is empty, with their `as_of`."""
    answer = await _forward(request, Scope.LEADERBOARDS_READ)
    if answer.status_code != 404:
        return answer
    return await _begun(request, board, orjson.loads(answer.body)) or answer


@route(router, leaderboards.SHOW_PLAYER)
async def player(
    request: Request, caller: Reader, board: Board, player: Player, query: Annotated[SeasonQuery, Query()]
) -> Response:
    """Forward a read of one player."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@route(router, leaderboards.SHOW_AROUND)
async def around(
    request: Request, caller: Reader, board: Board, player: Player, query: Annotated[AroundQuery, Query()]
) -> Response:
    """Forward a read of a player and the neighbours."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@route(router, leaderboards.SHOW_RANKS)
async def ranks(
    request: Request, caller: Reader, board: Board, body: RanksRequest, query: Annotated[SeasonQuery, Query()]
) -> Response:
    """Forward a read that names its players in the body."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@route(router, leaderboards.SET_UP_BOARD)
async def configure(request: Request, caller: Writer, board: Board, body: BoardSettings) -> Response:
    """Forward the settings of a board."""
    answer = await _forward(request, Scope.LEADERBOARDS_WRITE)
    if answer.status_code < 300:
        with suppress(DatabaseUnavailable):  # then the first score notes it
            await gateway(request).boards.note_set_up(board, caller)
    return answer


@route(router, leaderboards.DELETE_BOARD)
async def delete(request: Request, caller: Writer, board: Board) -> Response:
    """Delete a board with all its seasons."""
    answer = await _forward(request, Scope.LEADERBOARDS_WRITE)
    if answer.status_code < 300:
        try:
            await gateway(request).boards.note_deleted(board)
        except DatabaseUnavailable as error:
            raise unavailable(f"The board is deleted, but still counts as one of its key's: {error}.") from None
    return answer


@route(router, leaderboards.ERASE_PLAYER)
async def erase(request: Request, caller: Writer, board: Board, player: Player) -> Response:
    """Remove a player from a board."""
    return await _forward(request, Scope.LEADERBOARDS_WRITE)


async def _begun(request: Request, board: str, missing: Mapping[str, Any]) -> Response | None:
    """Return an empty page if the scores that began `board` may still wait; `missing` is the leaderboard's 404."""
    if "as_of" not in missing:
        return None
    with suppress(DatabaseUnavailable):
        begun_at = await gateway(request).boards.begun_at(board)
        as_of = missing["as_of"]
        if begun_at is None or (as_of is not None and datetime.fromisoformat(as_of) > begun_at + APPLIED_WITHIN):
            return None
        page = PageAnswer(
            board=board,
            season=None,
            players=0,
            entries=[],
            next=None,
            as_of=as_of,
            lag_seconds=missing["lag_seconds"],
            pending=missing["pending"],
        )
        return Response(orjson.dumps(page), media_type="application/json")
    return None


async def _forward(request: Request, scope: Scope) -> Response:
    return await forward(request, gateway(request).leaderboard, scope)
