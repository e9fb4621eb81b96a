"""Short-lived signed tokens (JWT, HS256) for clients that must not have an API key, such as browsers."""

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
"""Maximum difference between the clocks of the process that mints a token and of the one that reads it."""
_MAX_LENGTH = 16 * 1024


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a valid token."""

    id: str
    subject: str
    channels: tuple[str, ...]
    scopes: tuple[str, ...]
    expires_at: datetime

    @property
    def valid_until(self) -> float:
        """Return the Unix time from which `read` refuses this token."""
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
    """Return a token for `subject` that is valid for `expires_in` seconds, for `audience` only.

    `id` and `at` (seconds since 1970) are new by default; with the same arguments the token is the same.
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
    """Return the key that only `service` and the gateway share; it is derived from the gateway's `key`.

    The gateway and a service that must not have `key` can sign tokens for each other with it. On a command line:
    `printf mailer | openssl dgst -sha256 -hmac "$BELLHOP_TOKEN_KEY"`.
    """
    return hmac.new(key.encode(), service.encode(), hashlib.sha256).hexdigest()


def read(token: str, key: str, audience: str) -> Claims:
    """Return the claims of `token`; raise Problem 401, with the same text for every reason, unless it is valid."""
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
            f"The token was issued more than {LEEWAY_SECONDS} s in the future: the clocks of the server that issued it"
            " and of this one differ. Synchronize the clocks of the servers.",
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
