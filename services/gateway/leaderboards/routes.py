"""Leaderboards: answered by the leaderboard service, under the gateway's address and keys.

The names are looked at here as well: a path is forwarded as it came, and `..` in it would lead somewhere else.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.scores import PathName
from bellhop.sql.database import DatabaseUnavailable
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import unavailable
from bellhop.web.strict_json import check_content_type
from services.gateway.acceptance.idempotent_route import AnyQueryIdempotentRoute
from services.gateway.leaderboards.forwarding import forward
from services.gateway.parts import gateway

router = APIRouter(route_class=AnyQueryIdempotentRoute, tags=["leaderboards"])

Reader = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_WRITE))]
Board = Annotated[PathName, Path(description="name of the board")]
APPLIED_WITHIN = timedelta(seconds=15)
"""After a board was begun its first scores are answered; it is over when `as_of` is later than that by so much."""

Player = Annotated[PathName, Path(description="name of the player")]


@router.get("/v1/leaderboards", summary="List the boards")
async def boards(request: Request, caller: Reader) -> Response:
    """Forward a read of all boards."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@router.get("/v1/leaderboards/{board}", summary="The top of a board")
async def top(request: Request, caller: Reader, board: Board) -> Response:
    """Forward a read of one board. One whose first scores were accepted and still wait is empty, with their `as_of`."""
    answer = await _forward(request, Scope.LEADERBOARDS_READ)
    if answer.status_code != 404:
        return answer
    return await _begun(request, board, orjson.loads(answer.body)) or answer


@router.get("/v1/leaderboards/{board}/players/{player}", summary="Where a player stands")
@router.get("/v1/leaderboards/{board}/players/{player}/around", summary="Who stands next to a player")
async def player(request: Request, caller: Reader, board: Board, player: Player) -> Response:
    """Forward a read of one player."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@router.post("/v1/leaderboards/{board}/ranks", summary="Where many players stand")
async def ranks(request: Request, caller: Reader, board: Board) -> Response:
    """Forward a read that names its players in the body: `{"players": [...]}`."""
    check_content_type(request)
    return await _forward(request, Scope.LEADERBOARDS_READ)


@router.put("/v1/leaderboards/{board}", summary="Set a board up")
async def configure(request: Request, caller: Writer, board: Board) -> Response:
    """Forward the settings of a board."""
    answer = await _forward(request, Scope.LEADERBOARDS_WRITE)
    if answer.status_code < 300:
        with suppress(DatabaseUnavailable):  # then the first score notes it
            await gateway(request).boards.note_set_up(board, caller)
    return answer


@router.delete("/v1/leaderboards/{board}", summary="Delete a board")
async def delete(request: Request, caller: Writer, board: Board) -> Response:
    """Forward the wish to delete a board with all its seasons."""
    answer = await _forward(request, Scope.LEADERBOARDS_WRITE)
    if answer.status_code < 300:
        try:
            await gateway(request).boards.note_deleted(board)
        except DatabaseUnavailable as error:
            raise unavailable(f"The board is deleted, but still counts as one of its key's: {error}.") from None
    return answer


@router.delete("/v1/leaderboards/{board}/players/{player}", summary="Erase a player")
async def erase(request: Request, caller: Writer, board: Board, player: Player) -> Response:
    """Forward the wish to take a player out."""
    return await _forward(request, Scope.LEADERBOARDS_WRITE)


async def _begun(request: Request, board: str, missing: dict[str, Any]) -> Response | None:
    """Return an empty page if the scores that began `board` may still wait; `missing` is the leaderboard's 404."""
    if "as_of" not in missing:
        return None
    with suppress(DatabaseUnavailable):
        begun_at = await gateway(request).boards.begun_at(board)
        as_of = missing["as_of"]
        if begun_at is None or (as_of is not None and datetime.fromisoformat(as_of) > begun_at + APPLIED_WITHIN):
            return None
        age = {name: missing[name] for name in ("as_of", "lag_seconds", "pending")}
        page: dict[str, Any] = {"board": board, "season": None, "players": 0, "entries": [], "next": None}
        return Response(orjson.dumps(page | age), media_type="application/json")
    return None


async def _forward(request: Request, scope: Scope) -> Response:
    return await forward(request, gateway(request).leaderboard, scope)
