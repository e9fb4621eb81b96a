"""The books: what was attempted, what was answered 2xx, what happened.

This is the total-queue checker of RabbitMQ's own Jepsen suite. For each kind of thing (mail, score, notification)

    lost        answered 2xx, and never happened             |K - E|
    unexpected  happened, and was never attempted            |E - A|
    doubled     happened twice where we promise once

A time-out is neither success nor failure: such a thing may have happened, and nobody is surprised either way.
A second copy of a mail is no doubled effect if its task is marked `uncertain` (RFC 1047); it is counted apart.
"""

from collections import Counter
from dataclasses import dataclass, field

KINDS = ("mail", "score", "notification")


@dataclass
class Verdict:
    """What the books say at the end."""

    things: int
    lost: set[str]
    unexpected: set[str]
    doubled: set[str]
    second_copies: int = 0
    """Mails that came twice and are marked so."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.unexpected or self.doubled)

    def __str__(self) -> str:
        names = {"lost": self.lost, "unexpected": self.unexpected, "doubled": self.doubled}
        found = [f"{len(ids)} {name}, such as {sorted(ids)[:3]}" for name, ids in names.items() if ids]
        return f"of {self.things}: {'; '.join(found) or 'nothing lost, unexpected or doubled'}"


@dataclass
class Books:
    """One run."""

    attempted: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    accepted: dict[str, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})

    @property
    def count(self) -> int:
        """How many things were answered 2xx."""
        return sum(map(len, self.accepted.values()))

    def missing(self, effects: dict[str, Counter[str]]) -> set[str]:
        """Return what was accepted and has not happened yet."""
        return {id for kind in KINDS for id in self.accepted[kind] if not effects[kind][id]}

    def balance(self, effects: dict[str, Counter[str]], excused: frozenset[str] = frozenset()) -> Verdict:
        """Compare with what happened; `excused` are mails marked `uncertain`."""
        attempted = {id for kind in KINDS for id in self.attempted[kind]}
        happened: Counter[str] = Counter()
        for kind in KINDS:
            happened.update(effects[kind])
        twice = {id for id, count in happened.items() if count > 1}
        return Verdict(
            things=len(attempted),
            lost=self.missing(effects),
            unexpected=set(happened) - attempted,
            doubled=twice - excused,
            second_copies=len(twice & excused),
        )
