"""Delays after which clients reconnect, spread so that they do not all reconnect together."""

import random

FIRST_MS = 1000
SPREAD_MS = 4000
MS_PER_CLIENT = 2
"""A process accepts about 500 connections a second beside its other work."""
MAX_MS = 60_000
_FORGET = 0.1


class ComeBack:
    """Estimates how many clients will reconnect soon, and spreads them."""

    def __init__(self) -> None:
        self.connected = 0
        """Clients of this process; all of them reconnect when it ends."""
        self._refused = 0.0

    def milliseconds(self) -> int:
        """Return the delay of one client in milliseconds: random, and proportional to the number of clients."""
        spread = max(SPREAD_MS, int((self.connected + self._refused) * MS_PER_CLIENT))
        return FIRST_MS + random.randrange(min(spread, MAX_MS))

    def refuse(self) -> int:
        """Count one refused client, and return its delay in milliseconds."""
        self._refused += 1
        return self.milliseconds()

    def forget_some(self) -> None:
        """Reduce the number of refused clients by a tenth. Call it every second."""
        self._refused -= self._refused * _FORGET
