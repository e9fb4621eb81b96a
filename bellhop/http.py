"""HTTP between the services of one Bellhop."""

from typing import Any

import httpx

TIMEOUT_SECONDS = 5.0
"""Limit of connecting, and of each read and write."""


def internal_client(timeout: float = TIMEOUT_SECONDS, **options: Any) -> httpx.AsyncClient:
    """Return a client for our own services and for the broker's management API.

    It ignores HTTP_PROXY and related variables: a proxy for the internet would receive tokens and passwords.
    """
    return httpx.AsyncClient(timeout=timeout, trust_env=False, **options)
