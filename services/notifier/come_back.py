"""When clients are told to connect again: not all at the same moment."""

import random

FIRST_MS = 1000
SPREAD_MS = 4000
MS_PER_CLIENT = 2
"""A process takes some 500 connections a second beside its other work."""
MAX_MS = 60_000
_FORGET = 0.1


class ComeBack:
    """How many clients will connect again soon, roughly, and over what time they are spread."""

    def __init__(self) -> None:
        self.connected = 0
        """Clients of this process: all of them connect again when it ends."""
        self._refused = 0.0

    def milliseconds(self) -> int:
        """Return in how many milliseconds one client is to connect again: random, and later the more there are."""
        spread = max(SPREAD_MS, int((self.connected + self._refused) * MS_PER_CLIENT))
        return FIRST_MS + random.randrange(min(spread, MAX_MS))

    def refuse(self) -> int:
        """Note that one client is refused and will try again; return the same."""
        self._refused += 1
        return self.milliseconds()

    def forget_some(self) -> None:
        """Forget a tenth of the refused. Call it every second."""
        self._refused -= self._refused * _FORGET
