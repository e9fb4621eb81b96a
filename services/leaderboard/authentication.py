"""Who may read: the bearer of a token that the gateway signed for the leaderboard."""

import time
from collections.abc import Awaitable, Callable

from bellhop.web import tokens
from bellhop.web.auth import Caller
from bellhop.web.problems import Problem


def authenticator(key: str) -> Callable[[str], Awaitable[Caller | None]]:
    """Return what finds the caller of a token. The gateway uses one for many requests, so they are remembered."""
    known: dict[str, tuple[float, Caller]] = {}

    async def authenticate(token: str) -> Caller | None:
        expires, caller = known.get(token, (0.0, None))
        if caller is not None and expires > time.time():
            return caller
        try:
            claims = tokens.read(token, key, "leaderboard")
        except Problem:
            return None
        if len(known) >= 1000:
            known.clear()
        caller = Caller(claims.subject, claims.subject, frozenset(claims.scopes))
        known[token] = (claims.valid_until, caller)
        return caller

    return authenticate
