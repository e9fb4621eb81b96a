"""HTTP between the services of one Bellhop: the client, and the authentication of its tokens."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from bellhop.errors import Unavailable
from bellhop.http import TIMEOUT_SECONDS
from bellhop.web import tokens
from bellhop.web.auth import Caller, Scope
from bellhop.web.problems import Problem

TOKEN_SECONDS = 300
"""Lifetime of a token. It is used for many requests, and replaced after half of this time."""
MAX_KNOWN_TOKENS = 1000


class PeerUnavailable(Unavailable):
    """Another service of Bellhop does not answer, or returns an unexpected answer."""


class Peer:
    """The client of another service."""

    def __init__(
        self,
        name: str,
        url: str,
        key: str,
        http: httpx.AsyncClient,
        *,
        subject: str,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`key` signs the tokens; `subject` is the name of this service in them."""
        self.name = name
        self._url = url
        self._key = key
        self._http = http
        self._subject = subject
        self._timeout_seconds = timeout_seconds
        self._tokens: dict[tuple[str, Scope | None], tuple[float, str]] = {}

    async def request(
        self,
        method: str,
        path: str,
        *,
        audience: str | None = None,
        scope: Scope | None = None,
        timeout_seconds: float | None = None,
        headers: dict[str, str] | None = None,
        **options: Any,
    ) -> httpx.Response:
        """Return the answer, with any status; `options` are those of httpx.

        path: percent-encoded, with its query.
        audience: the audience of the token; by default the name of the service.
        timeout_seconds: for connecting, and between two parts of the answer.

        Raises:
            PeerUnavailable: there is no answer.
        """
        token = self._token(audience or self.name, scope)
        try:
            return await self._http.request(
                method,
                f"{self._url}{path}",
                headers={**(headers or {}), "Authorization": f"Bearer {token}"},
                timeout=timeout_seconds or self._timeout_seconds,
                **options,
            )
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__  # many of httpx's errors have no text
            raise PeerUnavailable(f"the {self.name} does not answer: {reason}") from error

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        """Return the JSON of an answer with status 200; the arguments are those of `request`.

        Raises:
            PeerUnavailable: there is no answer, or an answer with another status.
        """
        answer = await self.request(method, path, **options)
        if answer.status_code != 200:
            raise PeerUnavailable(f"the {self.name} answers {answer.status_code} to {method} {path.partition('?')[0]}")
        try:
            return answer.json()
        except ValueError as error:
            raise PeerUnavailable(f"the {self.name} answers something else than JSON") from error

    def _token(self, audience: str, scope: Scope | None) -> str:
        made_at, token = self._tokens.get((audience, scope), (float("-inf"), ""))
        if time.monotonic() - made_at > TOKEN_SECONDS / 2:
            token = tokens.mint(self._key, self._subject, TOKEN_SECONDS, audience, scopes=[scope] if scope else ())
            self._tokens[audience, scope] = (time.monotonic(), token)
        return token


def token_authenticator(key: str, audience: str) -> Callable[[str], Awaitable[Caller | None]]:
    """Return a function for `app.state.authenticate`, which returns the caller of a token for `audience`.

    `key` is the key of the tokens. Valid tokens are cached, because a `Peer` uses one for many requests.
    """
    known: dict[str, tuple[float, Caller]] = {}

    async def authenticate(token: str) -> Caller | None:
        valid_until, caller = known.get(token, (0.0, None))
        if caller is not None and valid_until > time.time():
            return caller
        try:
            claims = tokens.read(token, key, audience)
        except Problem:
            return None
        if len(known) >= MAX_KNOWN_TOKENS:
            known.clear()
        caller = Caller(claims.subject, claims.subject, frozenset(claims.scopes))
        known[token] = (claims.valid_until, caller)
        return caller

    return authenticate
