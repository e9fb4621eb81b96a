"""`Idempotency-Key`, for every POST: the same request under the same key has one effect and the same answer.

Routes whose effect is a commit to our database write the key in that commit; they are marked by `commits_its_key`. All
others are executed under a reservation, by `IdempotentRoute` (`idempotent_route.py`). Only successful answers are
stored: a refused request had no effect, and may be repeated under its key.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from bellhop.web.auth import Caller
from bellhop.web.documents import header
from bellhop.web.problems import Problem
from services.gateway.acceptance.store import IdempotencyKey

KEY_HEADER = header(
    "Idempotency-Key", '`"…"`, 1 to 255 characters: the same request under the same key has one effect and one answer'
)
LARGE_BYTES = 1_048_576
"""A body beyond this is hashed in a thread: an upload has up to 25 MB, which takes tens of milliseconds."""
_KEY = re.compile(r'"?([\x21\x23-\x7e][\x20\x21\x23-\x7e]{0,254})"?')
SEED = "bellhop.idempotency.seed"

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


def commits_its_key(endpoint: F) -> F:
    """Mark a route that writes its idempotency key in the commit of its effect."""
    endpoint.__dict__["commits_its_key"] = True
    return endpoint


def answers_with_a_secret(endpoint: F) -> F:
    """Mark a route whose answer must not be stored: it makes the same answer again from `seed_of`."""
    endpoint.__dict__["answers_with_a_secret"] = True
    return endpoint


async def key_of(request: Request, caller: Caller) -> IdempotencyKey | None:
    """Return the key of a request that has one; raise Problem 400 for a malformed one.

    The header is a structured-field string, `"…"`; without quotes it is accepted, too
    (draft-ietf-httpapi-idempotency-key-header).
    """
    values = request.headers.getlist("idempotency-key")
    if not values:
        return None
    match = _KEY.fullmatch(values[0])
    if match is None or len(values) > 1:
        raise Problem(400, "Bad Request", "Send one Idempotency-Key of 1 to 255 printable ASCII characters.")
    return IdempotencyKey(caller.name, match[1], await _fingerprint(request))


async def _fingerprint(request: Request) -> str:
    """Return a hash that identifies this request: its method, path, query and body, and the headers of the body."""
    digest = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    body = await request.body()
    if len(body) > LARGE_BYTES:
        await asyncio.to_thread(digest.update, body)
    else:
        digest.update(body)
    content_type = request.headers.get("content-type", "").strip().lower()
    # Without such headers the value is that of earlier versions, so that keys stay valid after an upgrade.
    if content_type.partition(";")[0].rstrip() == "application/json":
        content_type = ""
    more = [request.scope["query_string"].decode("latin-1"), content_type]
    more += sorted(f"{name}:{value}" for name, value in request.headers.items() if name.startswith("ce-"))
    if any(more):
        digest.update("\n".join(["", digest.hexdigest(), *more]).encode())
    return digest.hexdigest()


def conflict() -> Problem:
    """Return the 422 for an idempotency key of another request."""
    return Problem(
        422,
        "Idempotency key used before",
        "This Idempotency-Key came with another request before. Use a fresh key for a new request.",
    )


@dataclass(frozen=True, slots=True)
class Seed:
    """The seed of an answer with a secret, which is then the same each time."""

    id: str
    created_at: int
    """Milliseconds since 1970."""
    replay: bool
    """The effect is already committed; only the answer is made again."""


def seed_of(request: Request) -> Seed | None:
    """Return the seed of a request under an idempotency key; None where it has none, and the secret is random."""
    seed: Seed | None = request.scope.get(SEED)
    return seed


def secret_bytes(request: Request, token_key: str, purpose: str) -> bytes:
    """Return 64 secret bytes: random, or under an idempotency key always the same for its stored row.

    They follow from the row and `BELLHOP_TOKEN_KEY` together, so that neither a copy of the database nor the key alone
    reveals them.
    """
    seed = seed_of(request)
    if seed is None:
        return secrets.token_bytes(64)
    return hmac.new(token_key.encode(), f"idempotency\0{purpose}\0{seed.id}".encode(), hashlib.sha512).digest()
