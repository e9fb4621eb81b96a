"""Authorization of readers: from the token of a request to the channels of a stream."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Scope

from bellhop.web import tokens
from bellhop.web.problems import Problem, invalid
from bellhop.web.rate_limit import Limiter
from bellhop.web.strict_json import unknown_parameters
from bellhop.web.tokens import Claims

AUDIENCE = "stream"
QUERY = ("token", "channels", "last_event_id")
"""The query parameters of a stream and of a socket."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Parameters of a reader's request, from its query, its headers or its first message."""

    token: str | None
    last_event_id: str | None
    channels: tuple[str, ...] | None
    """None: all channels of the token."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a reader may read, and until when."""

    subject: str
    channels: tuple[str, ...]
    expires: float
    """Unix time."""


def read_request(query_string: bytes, headers: Mapping[str, str], last_event_id: str | None = None) -> Asked:
    """Return the parameters in a request's query and headers.

    A header takes precedence: a browser that reconnects repeats the query of its first request.
    `last_event_id`: an id that the client gave elsewhere.
    """
    query = dict(_pairs(query_string))
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    token = credentials.strip() if scheme.lower() == "bearer" else query.get("token")
    channels = query.get("channels")
    return Asked(
        token=token,
        last_event_id=last_event_id or headers.get("last-event-id") or query.get("last_event_id"),
        channels=split_channels(channels.split(",")) if channels is not None else None,
    )


def check_query(query_string: bytes) -> None:
    """Check the names of the query parameters.

    Raises:
        Problem: 422 for a parameter that is unknown, or given more than once.
    """
    if wrong := unknown_parameters([name for name, _ in _pairs(query_string)], QUERY):
        raise invalid(wrong)


def _pairs(query_string: bytes) -> list[tuple[str, str]]:
    return parse_qsl(query_string.decode("latin-1"))


def split_channels(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without surrounding blanks and without duplicates."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


@contextmanager
def counting_refusals(limiter: Limiter, scope: Scope) -> Iterator[None]:
    """Rate-limit refused requests by address. Accepted requests are limited by the subject of their token.

    The token is checked first, which is cheap, so that one client cannot block others behind the same address.

    Raises:
        Problem: the refusal, or 429 for an address with too many of them.
    """
    try:
        yield
    except Problem:
        limiter.count_address(scope)
        raise


def read_token(token: str | None, key: str) -> Claims:
    """Return the claims of a stream token.

    Raises:
        Problem: 401 for a token that is missing, invalid or expired.
    """
    if not token:
        raise Problem(
            401,
            "Unauthorized",
            "Send a stream token as 'Authorization: Bearer …' or as ?token=. POST /v1/stream-tokens makes one.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return tokens.read(token, key, AUDIENCE)


def grant(claims: Claims, asked: Asked) -> Grant:
    """Return what a reader with these claims may read. Channel names are compared exactly: there are no wildcards.

    Raises:
        Problem: 403 for a channel that the token does not name.
    """
    # Interned: thousands of readers use the same channel names.
    allowed = tuple(dict.fromkeys(sys.intern(channel) for channel in claims.channels))
    channels = allowed if asked.channels is None else tuple(map(sys.intern, asked.channels))
    foreign = [channel for channel in channels if channel not in allowed]
    if foreign or not channels:
        what = f"The token does not name the channel {foreign[0][:200]!r}." if foreign else "No channel is named."
        raise Problem(
            403,
            "Forbidden",
            f"{what} Ask for channels of the token, or for a token that names them.",
            headers={"WWW-Authenticate": 'Bearer error="insufficient_scope"'},
        )
    return Grant(claims.subject, channels, claims.valid_until)
