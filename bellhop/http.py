"""HTTP between the parts of one Bellhop."""

from typing import Any

import httpx

TIMEOUT_SECONDS = 5.0
"""To connect, and between two pieces of an answer."""


def internal_client(timeout: float = TIMEOUT_SECONDS, **options: Any) -> httpx.AsyncClient:
    """Return a client for services of ours and for the broker's management API.

    It ignores HTTP_PROXY and its kin: they are meant for the internet, and would be shown tokens and passwords.
    """
    return httpx.AsyncClient(timeout=timeout, trust_env=False, **options)
