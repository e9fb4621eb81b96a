"""Who may read what: from the token of a request to the channels of a stream."""

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl

from starlette.types import Scope

from bellhop.web import tokens
from bellhop.web.limits import Limiter
from bellhop.web.problems import Problem, invalid
from bellhop.web.strict_json import unknown_parameters

AUDIENCE = "stream"
QUERY = ("token", "channels", "last_event_id")
"""The query parameters that all three ways of reading take."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client said about itself, wherever it said it."""

    token: str | None
    last_event_id: str | None
    channels: tuple[str, ...] | None
    """None: all that the token names."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What it is given."""

    subject: str
    channels: tuple[str, ...]
    expires: float


def read_request(
    query_string: bytes, headers: Mapping[str, str], last_event_id: str | None = None, *, also: Collection[str] = ()
) -> Asked:
    """Read a request's query and headers; a header wins, because a browser's address keeps its first query for ever.

    `last_event_id`: where the client said it elsewhere; `also`: further parameters, which are read elsewhere.

    Raises:
        Problem: 422 for a parameter that is not known, or given more than once.
    """
    pairs = parse_qsl(query_string.decode("latin-1"))
    if wrong := unknown_parameters([name for name, _ in pairs], (*QUERY, *also)):
        raise invalid(wrong)
    query = dict(pairs)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    token = credentials.strip() if scheme.lower() == "bearer" else query.get("token")
    channels = query.get("channels")
    return Asked(
        token=token,
        last_event_id=last_event_id or headers.get("last-event-id") or query.get("last_event_id"),
        channels=split_channels(channels.split(",")) if channels is not None else None,
    )


def split_channels(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names without blanks and copies."""
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


@contextmanager
def counting_refusals(limiter: Limiter, scope: Scope) -> Iterator[None]:
    """Count a request that is refused here against its address.

    The token is looked at first, which is cheap: one person must not lock out all others behind the same address.

    Raises:
        Problem: the refusal, or 429 for an address with too many of them.
    """
    try:
        yield
    except Problem:
        limiter.count_address(scope)
        raise


def grant(asked: Asked, key: str) -> Grant:
    """Say what `asked` may read. Channels are compared as they are: there are no wildcards.

    Raises:
        Problem: 401 for a missing, wrong or expired token; 403 for a channel that the token does not name.
    """
    if not asked.token:
        raise Problem(
            401,
            "Unauthorized",
            "Send a stream token as 'Authorization: Bearer …' or as ?token=. POST /v1/stream-tokens makes one.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    claims = tokens.read(asked.token, key, AUDIENCE)
    # Interned: thousands of readers name the same channels.
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
    return Grant(claims.subject, channels, claims.expires_at.timestamp())
