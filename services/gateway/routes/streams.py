"""`POST /v1/stream-tokens`: what a browser needs to follow live events."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from bellhop.contracts.notifications import StreamTokenRequest
from bellhop.web import tokens
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.strict_json import StrictRoute
from services.gateway.deps import gateway

router = APIRouter(route_class=StrictRoute, tags=["streams"])


@router.post("/v1/stream-tokens", status_code=201, summary="Let a browser follow channels")
async def grant(
    request: Request,
    wish: StreamTokenRequest,
    caller: Annotated[Caller, Depends(require(Scope.STREAMS_GRANT))],
) -> dict[str, str]:
    """Return a token for exactly these channels, and the address of the stream. The token is the only secret."""
    settings = gateway(request).settings
    token = tokens.mint(
        settings.token_key.get_secret_value(), wish.subject, wish.expires_in, "stream", channels=wish.channels
    )
    return {"token": token, "url": f"{settings.notifier_url}/v1/stream"}
