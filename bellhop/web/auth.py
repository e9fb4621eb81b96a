"""Authentication and authorization: API keys with scopes (RFC 6750 bearer tokens).

A key has the form `bh_<8 characters of id>_<43 characters of secret>`. The id is public and identifies the row. Of the
secret, 256 random bits, only the SHA-256 is stored; it needs no salt and no slow hash, because it cannot be guessed.
"""

import base64
import hashlib
import hmac
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import Request

from bellhop.web.problems import Problem
from bellhop.web.rate_limit import Limiter

_ALPHANUMERIC = string.ascii_letters + string.digits
_CALLERS = "bellhop.callers"


class Scope(StrEnum):
    """What a key may do."""

    MAIL_SEND = "mail:send"
    MAIL_READ = "mail:read"
    NOTIFICATIONS_SEND = "notifications:send"
    SCORES_WRITE = "scores:write"
    EVENTS_WRITE = "events:write"
    LEADERBOARDS_READ = "leaderboards:read"
    LEADERBOARDS_WRITE = "leaderboards:write"
    STREAMS_GRANT = "streams:grant"
    SUBSCRIBERS_READ = "subscribers:read"
    SUBSCRIBERS_WRITE = "subscribers:write"
    BROADCASTS_READ = "broadcasts:read"
    BROADCASTS_WRITE = "broadcasts:write"
    DEAD_LETTERS_READ = "dead-letters:read"
    DEAD_LETTERS_WRITE = "dead-letters:write"
    SYSTEM_READ = "system:read"
    KEYS_WRITE = "keys:write"
    ADMIN = "admin"
    """All of the above."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The API key that a request came with."""

    id: str
    name: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        """Return whether this caller has `scope`, or `admin`."""
        return scope in self.scopes or Scope.ADMIN in self.scopes

    def lacks(self, scopes: Iterable[str]) -> list[str]:
        """Return those of `scopes`, in order, that this caller does not have."""
        return [] if Scope.ADMIN in self.scopes else sorted(set(scopes) - self.scopes)

    def check(self, scope: Scope) -> None:
        """Raise Problem 403, which names the scope, unless this caller has it."""
        if not self.may(scope):
            raise Problem(
                403,
                "Forbidden",
                f"This key lacks the scope {scope.value}. Use a key that has it.",
                headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope.value}"'},
            )


class Guard(SecurityBase):
    """A dependency that returns the caller. A `StrictRoute` calls it before it reads anything else of a request.

    It counts the request, so that a request that is refused later for its contents is counted as well. It is called
    more than once (by the route, then by FastAPI), and identifies the caller once.
    """

    async def __call__(self, request: Request) -> Any:
        """Return the caller; raise Problem 401, 403 or 429."""
        known = request.scope.setdefault(_CALLERS, {})
        if self not in known:
            known[self] = await self.identify(request)
        return known[self]

    async def identify(self, request: Request) -> Any:
        """Count the request and return its caller; raise Problem 401, 403 or 429."""
        raise NotImplementedError


class Require(Guard):
    """The guard that `require` makes; FastAPI's documents show it as a bearer token."""

    model = HTTPBearer(bearerFormat="API key", description="An API key: `Authorization: Bearer bh_…`")
    scheme_name = "key"

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def identify(self, request: Request) -> Caller:
        """Count the request and return its caller; raise Problem 401, 403 or 429."""
        caller = await identify_caller(request)
        caller.check(self.scope)
        return caller


def require(scope: Scope) -> Require:
    """Return a FastAPI dependency that returns a `Caller` with `scope`.

    The application sets `app.state.authenticate`, which takes the whole key and returns its `Caller` or None.
    """
    return Require(scope)


async def identify_caller(request: Request) -> Caller:
    """Count the request and return its caller, with any scopes; raise Problem 401 or 429."""
    state = request.app.state
    limiter: Limiter = state.limiter
    key = bearer(request)
    caller: Caller | None = None
    if key:
        caller = await state.authenticate(key.strip())
        if caller is not None:
            limiter.count_key(request.scope, caller.id)
            return caller
        # A request with a wrong key is counted by its address, like one without a key.
        limiter.count_address(request.scope)
    # The same answer for a missing, wrong, expired or revoked key, so that callers cannot probe keys.
    raise Problem(
        401,
        "Unauthorized",
        "This needs a valid API key. Send it as `Authorization: Bearer bh_…`; it is never read from the URL.",
        headers={"WWW-Authenticate": "Bearer"},
    )


def bearer(request: Request) -> str:
    """Return the bearer token of a request (RFC 6750, 2.1); "" if it has none."""
    kind, _, credentials = request.headers.get("authorization", "").partition(" ")
    return credentials if kind.lower() == "bearer" else ""


def system_id(admin_key: str) -> str:
    """Return the public id of the system with this admin key; the key cannot be derived from it."""
    return hashlib.blake2b(admin_key.encode(), digest_size=8, person=b"bellhop-system").hexdigest()


def new_key(random: bytes | None = None) -> str:
    """Return a new API key. Store its id and the hash of its secret (`split_key`, `hash_key`), and show it once.

    `random`: 64 secret bytes from which the key is made.
    """
    random = random or secrets.token_bytes(64)
    secret = base64.urlsafe_b64encode(random[:32]).decode().rstrip("=")
    number = int.from_bytes(random[32:])
    public = ""
    for _ in range(8):
        number, digit = divmod(number, len(_ALPHANUMERIC))
        public += _ALPHANUMERIC[digit]
    return f"bh_{public}_{secret}"


def split_key(key: str) -> tuple[str, str] | None:
    """Return the id and the secret of `key`, or None if it does not have the form of one."""
    prefix, public, secret = key[:3], key[3:11], key[12:]
    if prefix != "bh_" or key[11:12] != "_" or len(secret) != 43 or not key.isascii() or not public.isalnum():
        return None
    return public, secret


def hash_key(secret: str) -> str:
    """Return what is stored of a key's secret: its SHA-256 in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def key_matches(secret: str, stored: str) -> bool:
    """Return whether `stored` is the hash of `secret`, in a time that does not depend on the result."""
    return hmac.compare_digest(hash_key(secret), stored)
