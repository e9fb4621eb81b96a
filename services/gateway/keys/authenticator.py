"""Finds the caller of a key and caches it for some seconds: a query would cost more than the rest of a request."""

from time import monotonic

from bellhop.web.auth import Caller
from services.gateway.keys.store import Keys

REMEMBER_SECONDS = 5.0
"""How long a revoked key may still work."""
MAX_REMEMBERED = 10_000


class Authenticator:
    """Looks keys up."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: dict[str, tuple[float, Caller]] = {}

    async def find(self, key: str) -> Caller | None:
        """Return whose key it is, None where it is not valid.

        Raises:
            DatabaseUnavailable: it cannot be looked up.
        """
        found = self._known.get(key)
        if found is not None and found[0] > monotonic():
            return found[1]
        caller = await self._keys.find(key)
        if caller is not None:
            if len(self._known) > MAX_REMEMBERED:
                self._known.clear()
            self._known[key] = (monotonic() + REMEMBER_SECONDS, caller)
        return caller
