"""Adaptive rates: servers' answers lower a rate, which then climbs back.

"Too fast" halves the rate (additive increase, multiplicative decrease). Where no rate was set, the measured rate is
halved, and the limit ends when the rate has climbed to twice of what it was. Several refusals by policy in a row pause
the domain.
"""

import time
from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

CLIMB_SECONDS = 120.0
"""A lowered rate takes this time to climb back to what it was."""
CLIMBED_SECONDS = 3 * CLIMB_SECONDS
"""After this time a lowered rate is twice of what it was, from any rate where it began."""
SETTLE_SECONDS = 5.0
"""Answers within this time after a change are about the rate before it."""
SLOWEST = 1 / 60
"""Tasks a second: no rate is lowered below this."""
UNMEASURED = 10.0
"""Tasks a second: the rate that is halved where less was sent so far."""
LONGEST_WAIT_SECONDS = 600.0
"""A server that answers "too fast" may ask for a pause up to this."""
PAUSE_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 21_600.0
REFUSALS = 3
"""This many refusals by policy in a row pause the domain."""
THROTTLED_DOMAINS = 3
"""If this many domains answer "too fast" within `SETTLE_SECONDS`, the relay is too fast and not the domains."""
STRIKE_SECONDS = 86_400.0
"""A pause within this time after the one before is twice as long."""


class Answer(Enum):
    """What a server's answer to a task means for the rate."""

    ACCEPTED = auto()
    THROTTLED = auto()
    REFUSED = auto()
    """Refused by policy."""
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Change:
    """Lower the rate of the limit `name` from `rate`, and pause for so many seconds."""

    name: str
    rate: float
    pause: float = 0.0
    strike: bool = False


@dataclass(frozen=True, slots=True)
class Lowered:
    """A limit that servers lowered. Times are those of the database's clock, in seconds."""

    rate: float
    ceiling: float
    climbs_from: float
    paused_until: float
    strikes: int
    generation: int

    def current(self, now: float, set_rate: float | None) -> float | None:
        """Return the rate that it has climbed to, at most `set_rate`; None where there is no limit any more."""
        climbed = self.rate + (self.ceiling - self.rate) * max(0.0, now - self.climbs_from) / CLIMB_SECONDS
        if set_rate is not None:
            return min(set_rate, climbed)
        return None if climbed >= 2 * self.ceiling else climbed


def is_settling(rate: float | None, climbs_from: float, now: float) -> bool:
    """Return whether a limit was lowered so recently that further answers are about the rate before."""
    return rate is not None and now - climbs_from < SETTLE_SECONDS


def lowered_values(change: Change, row: Any, now: float) -> dict[str, float | int]:
    """Return the new values of a limit's row."""
    strikes = row.strikes if now - row.climbs_from < STRIKE_SECONDS else 0
    pause = min(change.pause * 2**strikes, LONGEST_PAUSE_SECONDS)
    rate = max(change.rate / 2, SLOWEST)
    return {
        # After a pause for refusals the first task is a probe: its answer is known before the second goes.
        "rate": SLOWEST if change.strike else rate,
        "ceiling": max(change.rate, 2 * SLOWEST),
        "climbs_from": now + pause,
        "paused_until": now + pause,
        "next_at": now + (pause or 1 / rate),
        "strikes": strikes + change.strike,
    }


class Meter:
    """Measures how fast tasks are sent under each limit, over the current and the last interval."""

    def __init__(self) -> None:
        self._sent: Counter[str] = Counter()
        self._sent_before: Counter[str] = Counter()
        self._since = time.monotonic()
        self._seconds_before = 1.0

    def count(self, *names: str) -> None:
        """Count one task under these limits."""
        self._sent.update(names)

    def rate(self, name: str) -> float:
        """Return tasks a second, at least `UNMEASURED`."""
        seconds = max(1.0, time.monotonic() - self._since)
        return max(self._sent[name] / seconds, self._sent_before[name] / self._seconds_before, UNMEASURED)

    def next_interval(self) -> None:
        """Begin the next interval."""
        now = time.monotonic()
        self._sent_before, self._sent = self._sent, Counter()
        self._seconds_before, self._since = max(1.0, now - self._since), now


class Complaints:
    """Counts complaints of servers until they mean something."""

    def __init__(self) -> None:
        self._refusals: Counter[str] = Counter()
        self._throttled: dict[str, dict[str, float]] = {}

    def accepted(self, domain: str) -> None:
        """Count refusals of this domain from 0."""
        if self._refusals:
            self._refusals.pop(domain, None)

    def refused(self, domain: str) -> bool:
        """Count a refusal; return whether the domain must be paused."""
        self._refusals[domain] += 1
        if self._refusals[domain] < REFUSALS:
            return False
        del self._refusals[domain]
        return True

    def is_relay(self, domain: str, relay: str) -> bool:
        """Count a "too fast"; return whether it came from so many domains that the relay is too fast."""
        now = time.monotonic()
        seen = self._throttled.setdefault(relay, {})
        seen[domain] = now
        for each in [each for each, at in seen.items() if now - at > SETTLE_SECONDS]:
            del seen[each]
        return len(seen) >= THROTTLED_DOMAINS
