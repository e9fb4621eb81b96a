"""Short-lived signed tokens (JWT, HS256) for whoever must not have an API key: browsers above all."""

import hashlib
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from bellhop.contracts.base import new_id
from bellhop.web.problems import Problem

_ALGORITHM = "HS256"
LEEWAY_SECONDS = 60
"""The clocks of those who mint and of those who read may differ by so much."""
_MAX_LENGTH = 16 * 1024


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says."""

    id: str
    subject: str
    channels: tuple[str, ...]
    scopes: tuple[str, ...]
    expires_at: datetime

    @property
    def valid_until(self) -> float:
        """Return the Unix time from which on `read` refuses this token."""
        return self.expires_at.timestamp() + LEEWAY_SECONDS


def mint(
    key: str,
    subject: str,
    expires_in: int,
    audience: str,
    *,
    channels: Sequence[str] = (),
    scopes: Sequence[str] = (),
    id: str | None = None,
    at: int | None = None,
) -> str:
    """Return a token for `subject` that is valid for `expires_in` seconds at `audience` alone.

    `id` and `at` (seconds since 1970) are fresh ones unless given; with all arguments equal it is the same token.
    """
    now = int(time.time()) if at is None else at
    claims: dict[str, Any] = {
        "jti": id or new_id(),
        "sub": subject,
        "aud": audience,
        "iat": now,
        "exp": now + expires_in,
    }
    if channels:
        claims["channels"] = list(channels)
    if scopes:
        claims["scope"] = " ".join(scopes)
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


def service_key(key: str, service: str) -> str:
    """Return the key that `service` shares with the gateway alone, which follows from the gateway's own key.

    So the gateway, which has `key`, and a service that must not have it can sign for one another. On a command line:
    `printf mailer | openssl dgst -sha256 -hmac "$BELLHOP_TOKEN_KEY"`.
    """
    return hmac.new(key.encode(), service.encode(), hashlib.sha256).hexdigest()


def read(token: str, key: str, audience: str) -> Claims:
    """Return what `token` says; raise Problem 401, always with the same words, unless it is valid here and now."""
    try:
        if len(token) > _MAX_LENGTH:
            raise ValueError("longer than any token that was minted here")
        claims = jwt.decode(
            token, key, algorithms=[_ALGORITHM], audience=audience, leeway=LEEWAY_SECONDS,
            options={"require": ["jti", "sub", "exp", "aud"]},
        )  # fmt: skip
        return Claims(
            id=_text(claims["jti"]),
            subject=_text(claims["sub"]),
            channels=tuple(_text(channel) for channel in claims.get("channels", ())),
            scopes=tuple(_text(claims.get("scope", "")).split()),
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        )
    except jwt.ImmatureSignatureError:
        raise Problem(
            401,
            "Unauthorized",
            f"The token was made more than {LEEWAY_SECONDS} s later than it is here: the clocks of the server that made"
            " it and of this one differ. Whoever runs them must set the clocks.",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        ) from None
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, OSError):
        raise Problem(
            401,
            "Unauthorized",
            "This needs a valid token. Get a fresh one and connect again with it.",
            headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
        ) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a string")
    return value
