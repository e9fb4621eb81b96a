"""API keys: create, list and revoke."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.identity import is_reserved_name
from bellhop.web.auth import Caller, Scope, new_key, require
from bellhop.web.problems import Problem, invalid
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.acceptance.keys import answers_with_a_secret, secret_bytes, seed_of
from services.gateway.keys.schemas import KeyRequest, KeysAnswer, NewKeyAnswer
from services.gateway.keys.store import Revocation
from services.gateway.parts import gateway
from services.gateway.tasks.routes import time_of

router = APIRouter(route_class=IdempotentRoute, tags=["keys"])


@router.post("/v1/keys", status_code=201, summary="Make a key")
@answers_with_a_secret
async def create(
    request: Request, body: KeyRequest, caller: Annotated[Caller, Depends(require(Scope.KEYS_WRITE))]
) -> NewKeyAnswer:
    """Return the key; it is shown this once and kept only as a hash."""
    if is_reserved_name(body.name):
        raise invalid([{"loc": ("body", "name"), "msg": "Bellhop uses this name itself. Choose another."}])
    if beyond := caller.lacks(body.scopes):
        raise Problem(403, "Forbidden", f"A key cannot give what it lacks itself: {', '.join(beyond)}.")
    keys = gateway(request).keys
    # A key acts for its name, so that it must not come from a key that may do less than those that have the name.
    if beyond := caller.lacks(await keys.scopes_of(body.name)):
        raise Problem(
            403,
            "Forbidden",
            f"There are keys of the name {body.name} with scopes that this key lacks: {', '.join(beyond)}."
            " Choose another name, or use a key that has them.",
        )
    secret = secret_bytes(request, gateway(request).settings.token_key.get_secret_value(), "api-key")
    key = new_key(secret)
    seed = seed_of(request)
    if seed is None or not seed.replay:
        await keys.create(body.name, body.scopes, key)
    return {"id": key[3:11], "name": body.name, "key": key}


@router.get("/v1/keys", summary="List keys")
async def show_all(request: Request, caller: Annotated[Caller, Depends(require(Scope.KEYS_WRITE))]) -> KeysAnswer:
    """Return all keys without their secrets."""
    return {
        "keys": [
            {
                "id": key.id,
                "name": key.name,
                "scopes": key.scopes.split(),
                "created_at": time_of(key.created_at),
                "revoked_at": time_of(key.revoked_at),
            }
            for key in await gateway(request).keys.all()
        ]
    }


@router.delete("/v1/keys/{key_id}", status_code=204, summary="Revoke a key")
async def revoke(
    request: Request, key_id: str, caller: Annotated[Caller, Depends(require(Scope.KEYS_WRITE))]
) -> Response:
    """Revoke a key; it stops working within five seconds on every replica.

    The caller's key must have all scopes of the revoked one. The last key with the scope `admin` cannot be revoked.
    """
    outcome, lacking = await gateway(request).keys.revoke(key_id, caller)
    if outcome is Revocation.UNKNOWN:
        raise Problem(404, "Not Found", "There is no such key, or it is revoked already.")
    if outcome is Revocation.BEYOND:
        raise Problem(403, "Forbidden", f"A key cannot revoke one that may do more: it lacks {', '.join(lacking)}.")
    if outcome is Revocation.LAST_ADMIN:
        raise Problem(409, "Conflict", "This is the last key with the scope admin. Make another one first.")
    return Response(status_code=204)
