"""Leaderboards: answered by the leaderboard service, under the gateway's address and keys."""

import time
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web import tokens
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import Problem
from bellhop.web.strict_json import StrictRoute, check_content_type
from services.gateway.deps import gateway
from services.gateway.intake import unavailable

router = APIRouter(route_class=StrictRoute, tags=["leaderboards"])

TOKEN_SECONDS = 300
_ANSWER_HEADERS = ("content-type", "etag", "retry-after", "cache-control")

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
    parts = gateway(request)
    url = httpx.URL(
        parts.settings.leaderboard_url, raw_path=request.scope["raw_path"] + _query(request.scope["query_string"])
    )
    headers = {"Authorization": f"Bearer {_token(parts.settings.token_key.get_secret_value(), scope)}"}
    for name in ("content-type", "if-none-match"):
        if (value := request.headers.get(name)) is not None:
            headers[name] = value
    try:
        answer = await parts.http.request(request.method, url, headers=headers, content=await request.body())
    except httpx.HTTPError:
        raise unavailable("The leaderboard does not answer.") from None
    if answer.status_code in (401, 403):
        raise Problem(502, "Bad Gateway", "The leaderboard does not know this gateway: their token keys differ.")
    kept = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
    return Response(answer.content, answer.status_code, kept)


def _query(query: bytes) -> bytes:
    return b"?" + query if query else b""


_tokens: dict[tuple[str, Scope], tuple[float, str]] = {}


def _token(key: str, scope: Scope) -> str:
    """Return a token that opens the leaderboard; one is used for many requests."""
    made, token = _tokens.get((key, scope), (0.0, ""))
    if time.monotonic() - made > TOKEN_SECONDS / 2 or not token:
        token = tokens.mint(key, "gateway", TOKEN_SECONDS, "leaderboard", scopes=[scope])
        _tokens[key, scope] = (time.monotonic(), token)
    return token
