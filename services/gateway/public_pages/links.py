"""The links in mails to subscribers. A link allows one action for one subscriber, without a login.

A token is base64url of: kind (1 byte), subscriber id (16), expiry (4, seconds since 1970; 0 is never), the names of the
lists with commas between them, and a signature (16, of HMAC-SHA-256). It holds no address: links end up in logs.
"""

import base64
import binascii
import hmac
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit
from uuid import UUID

_SIGNATURE = 16
_HEAD = 1 + 16 + 4
MAX_TOKEN = 4096


class LinkKind(Enum):
    """What a link is for."""

    CONFIRM = b"c"
    UNSUBSCRIBE = b"u"


@dataclass(frozen=True, slots=True)
class LinkClaims:
    """The content of a valid token."""

    subscriber_id: str
    lists: tuple[str, ...]


class Links:
    """Makes links and reads their tokens."""

    def __init__(self, keys: Sequence[str], public_url: str) -> None:
        """`keys`: the same on all replicas. The first one signs; a link that any of them signed is valid."""
        # Derived keys, so that no token of another kind can be taken for one of these.
        self._keys = [hmac.digest(key.encode(), b"bellhop newsletter links", "sha256") for key in keys]
        self._base = public_url.rstrip("/")
        self.host = urlsplit(public_url).hostname or "localhost"

    def confirm(self, subscriber_id: str, lists: list[str], *, seconds: float) -> str:
        """Return the link that confirms subscriptions; it is valid for so many seconds."""
        return (
            f"{self._base}/confirm?token={self._token(LinkKind.CONFIRM, subscriber_id, lists, time.time() + seconds)}"
        )

    def unsubscribe(self, subscriber_id: str, list_: str) -> str:
        """Return the link that ends a subscription; it does not expire."""
        return f"{self._base}/unsubscribe?token={self._token(LinkKind.UNSUBSCRIBE, subscriber_id, [list_], 0)}"

    def read(self, kind: LinkKind, token: str) -> LinkClaims | None:
        """Return the content of a token; None unless it is one of ours, of this kind, and not expired."""
        if len(token) > MAX_TOKEN:
            return None
        try:
            data = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        payload, signature = data[:-_SIGNATURE], data[-_SIGNATURE:]
        genuine = any(hmac.compare_digest(signature, _sign(key, payload)) for key in self._keys)
        if not genuine or payload[:1] != kind.value:
            return None
        expires = int.from_bytes(payload[17:21])
        if expires and expires < time.time():
            return None
        return LinkClaims(str(UUID(bytes=payload[1:17])), tuple(payload[_HEAD:].decode().split(",")))

    def _token(self, kind: LinkKind, subscriber_id: str, lists: list[str], expires: float) -> str:
        person = bytes.fromhex(subscriber_id.replace("-", ""))
        payload = kind.value + person + int(expires).to_bytes(4) + ",".join(lists).encode()
        return base64.urlsafe_b64encode(payload + _sign(self._keys[0], payload)).rstrip(b"=").decode()


def _sign(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, payload, "sha256")[:_SIGNATURE]
