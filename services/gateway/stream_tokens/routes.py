"""`POST /v1/stream-tokens`: tokens with which browsers follow live events."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from bellhop.contracts import identity
from bellhop.contracts.identity import OUR_CHANNELS
from bellhop.contracts.notifications import MAX_TOKEN_BYTES, StreamTokenRequest
from bellhop.web import tokens
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import Problem, invalid
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.acceptance.keys import answers_with_a_secret, seed_of
from services.gateway.parts import gateway
from services.gateway.stream_tokens.schemas import StreamTokenAnswer
from services.gateway.tasks.routes import owner_of

router = APIRouter(route_class=IdempotentRoute, tags=["streams"])


@router.post("/v1/stream-tokens", status_code=201, summary="Let a browser follow channels")
@answers_with_a_secret
async def grant(
    request: Request,
    body: StreamTokenRequest,
    caller: Annotated[Caller, Depends(require(Scope.STREAMS_GRANT))],
) -> StreamTokenAnswer:
    """Return a token for exactly these channels, and the address of the stream. The token is the only secret.

    A reserved channel requires the scope to read what it shows.
    """
    for number, channel in enumerate(body.channels):
        if channel.startswith(OUR_CHANNELS):
            await _check_channel(request, channel, number, caller)
    settings = gateway(request).settings
    seed = seed_of(request)
    token = tokens.mint(
        settings.token_key.get_secret_value(),
        body.subject,
        body.expires_in,
        "stream",
        channels=body.channels,
        id=None if seed is None else seed.id,
        at=None if seed is None else seed.created_at // 1000,
    )
    if len(token) > MAX_TOKEN_BYTES:
        msg = (
            f"make a token of {len(token)} bytes, and a browser can use one of {MAX_TOKEN_BYTES}: it is part of a URL."
            " Name fewer channels, or shorter ones."
        )
        raise invalid([{"loc": ("body", "channels"), "msg": msg}])
    return {"token": token, "url": f"{settings.notifier_url}/v1/stream"}


async def _check_channel(request: Request, channel: str, number: int, caller: Caller) -> None:
    """Raise Problem 403 unless `caller` may read what `channel`, one of ours, shows."""
    kind, _, name = channel.partition(":")
    caller.check(_SCOPES[f"{kind}:"])
    parts = gateway(request)
    owner = owner_of(caller)
    mine = True
    match f"{kind}:":
        case identity.TASKS_CHANNEL:
            mine = owner in (None, name)
        case identity.TASK_CHANNEL:
            mine = await parts.ledger.get(name, owner) is not None
        case identity.BROADCAST_CHANNEL:
            mine = await parts.newsletter.broadcasts.get(name, owner) is not None
        case identity.GROUP_CHANNEL:
            mine = owner is None
    if not mine:
        raise Problem(
            403,
            "Forbidden",
            "This key may not read what the channel shows: it belongs to another key, or does not exist.",
            extensions={"errors": [{"pointer": f"#/channels/{number}", "detail": "belongs to another key"}]},
        )


_SCOPES = {
    identity.TASKS_CHANNEL: Scope.MAIL_READ,
    identity.TASK_CHANNEL: Scope.MAIL_READ,
    identity.GROUP_CHANNEL: Scope.MAIL_READ,
    identity.BROADCAST_CHANNEL: Scope.BROADCASTS_READ,
    identity.LEADERBOARD_CHANNEL: Scope.LEADERBOARDS_READ,
}
