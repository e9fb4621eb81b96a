"""Leaderboards: answered by the leaderboard service, under the gateway's address and keys."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.strict_json import StrictRoute, check_content_type
from services.gateway.deps import gateway
from services.gateway.forwarding import forward

router = APIRouter(route_class=StrictRoute, tags=["leaderboards"])

Reader = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_WRITE))]


@router.get("/v1/leaderboards", summary="List the boards")
@router.get("/v1/leaderboards/{board}", summary="The top of a board")
@router.get("/v1/leaderboards/{board}/players/{player}", summary="Where a player stands")
@router.get("/v1/leaderboards/{board}/players/{player}/around", summary="Who stands next to a player")
async def read(request: Request, caller: Reader, board: str = "", player: str = "") -> Response:
    """Forward a read."""
    return await _forward(request, Scope.LEADERBOARDS_READ)


@router.post("/v1/leaderboards/{board}/ranks", summary="Where many players stand")
async def ranks(request: Request, board: str, caller: Reader) -> Response:
    """Forward a read that names its players in the body: `{"players": [...]}`."""
    check_content_type(request)
    return await _forward(request, Scope.LEADERBOARDS_READ)


@router.put("/v1/leaderboards/{board}", summary="Set a board up")
@router.delete("/v1/leaderboards/{board}/players/{player}", summary="Erase a player")
async def write(request: Request, caller: Writer, board: str, player: str = "") -> Response:
    """Forward a write."""
    return await _forward(request, Scope.LEADERBOARDS_WRITE)


async def _forward(request: Request, scope: Scope) -> Response:
    settings = gateway(request).settings
    return await forward(request, "leaderboard", settings.leaderboard_url, scope, settings.token_key.get_secret_value())
