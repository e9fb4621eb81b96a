"""How fast mail may go out: to a domain, for a sender, through a relay; one rate for all replicas together.

Every limited mail gets an appointment. The database holds for each limit the time of its next free place; taking a
place moves that time on by 1/rate, in one transaction with everybody who asks at the same moment. Who has a place now
goes at once. Who has one later waits for it on the retry ladder, with the appointment in a header, so that waiting
costs neither a connection nor a place among the deliveries in hand, and counts no attempt. A mail without a limit asks
nobody: a look into two dictionaries is all it costs.

All times are the database's, so the clocks of replicas do not matter. Its clock may be set as well. Each row says when
it was last asked: where that lies in the future, the clock was set back, and all times of the row move back as far.
So a backlog and a pause stay as long as they were. An appointment holds no time of day: it says how many seconds are
left after the ladder, which measures by itself.

Limits come from the settings, and from what servers say. "Too fast" (421, 454 and their kin) halves the rate, which
then climbs back within minutes (additive increase, multiplicative decrease). Where no rate was set, it is the measured
one that is halved, and the limit goes away once the rate has climbed to twice of what it was. Policy refusals in a row
pause the domain. Both void the appointments that were made before, by the limit's generation.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.retry import RETRY_QUEUES
from bellhop.contracts.mail import Lane
from bellhop.observe.logs import get_logger
from bellhop.sql.database import BACKGROUND_SECONDS, Database
from bellhop.sql.group_commit import GroupCommit
from services.mailer import metrics
from services.mailer.rates import per_second
from services.mailer.relays.replies import Cause, Kind, Verdict
from services.mailer.store import metadata

BURST_SECONDS = 1.0
"""Places that nobody took stay free for so long."""
HOLD_SECONDS = 1.0
"""Who has a place within so many seconds waits in hand: the ladder would take as long."""
CLIMB_SECONDS = 120.0
"""How long a rate that was lowered takes to climb back to where it was."""
SETTLE_SECONDS = 5.0
"""What servers say within so many seconds of a change is about the rate before it."""
CLIMBED_SECONDS = 3 * CLIMB_SECONDS
"""After so long a lowered rate is twice of what it was before, from wherever it began."""
SLOWEST = 1 / 60
UNMEASURED = 10.0
"""Mails a second: where fewer went out so far, nobody knows what a server would take, and this is what is halved."""
LONGEST_WAIT = 600.0
"""A server that says "too fast" may ask for a pause of so many seconds at most."""
PAUSE_SECONDS = 600.0
LONGEST_PAUSE = 21_600.0
REFUSALS = 3
"""So many policy refusals in a row pause their domain."""
THROTTLED_DOMAINS = 3
"""Where so many domains say "too fast" within `SETTLE_SECONDS` of each other, it is the relay that is too slow."""
STRIKE_SECONDS = 86_400.0
"""A pause within so many seconds of the one before is twice as long."""
FORGET_SECONDS = 7 * 86_400.0
FORGOTTEN_AT_ONCE = 1000

TURN = "bellhop-turn"
"""The header with the appointment: attempt, seconds left after the ladder, then each limit's name and generation."""

limits = sa.Table(
    "mailer_limits",
    metadata,
    sa.Column("name", sa.String(300), primary_key=True),
    sa.Column("next_at", sa.Double, nullable=False),  # all times: Unix seconds by the database's clock
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("rate", sa.Double),  # mails a second, as lowered; none where servers never complained
    sa.Column("ceiling", sa.Double),  # the rate before that
    sa.Column("climbs_from", sa.Double, nullable=False),
    sa.Column("paused_until", sa.Double, nullable=False),
    sa.Column("strikes", sa.Integer, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False, server_default="0"),
)

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ask:
    name: str
    rate: float


@dataclass(frozen=True, slots=True)
class _Change:
    """Servers complained: lower the rate of `name` from `rate`, and pause for so many seconds."""

    name: str
    rate: float
    pause: float = 0.0
    strike: bool = False


@dataclass(frozen=True, slots=True)
class _Slowed:
    """What servers made of a limit."""

    rate: float
    ceiling: float
    climbs_from: float
    paused_until: float
    strikes: int
    generation: int

    def climbed(self, now: float) -> float:
        """Return the rate that it has climbed to."""
        return self.rate + (self.ceiling - self.rate) * max(0.0, now - self.climbs_from) / CLIMB_SECONDS


_SLOWED = [limits.c[name] for name in _Slowed.__dataclass_fields__]


@dataclass(frozen=True, slots=True)
class Turn:
    """When a mail may go."""

    wait: float
    """Seconds from now; 0 or less is at once."""
    header: str
    """What makes the appointment good when the mail comes back."""
    limit: str
    """The limit that makes it wait."""


class Limits:
    """All limits, as seen by one replica."""

    def __init__(self, database: Database, domains: dict[str, str], senders: dict[str, str]) -> None:
        """`domains` and `senders`: rates by name as in the settings, `*` for every one that is not named."""
        self._database = database
        self._writer = GroupCommit(database)
        self._domains = {name.lower(): per_second(rate) for name, rate in domains.items()}
        self._senders = {name: per_second(rate) for name, rate in senders.items()}
        self._relays: dict[str, float] = {}
        self._slowed: dict[str, _Slowed] = {}
        self._sent: Counter[str] = Counter()
        self._sent_before: Counter[str] = Counter()
        self._counting_since = time.monotonic()
        self._seconds_before = 1.0
        self._refusals: Counter[str] = Counter()
        self._throttled: dict[str, dict[str, float]] = {}
        self._insert = database.insert(limits).on_conflict_do_nothing()
        self._any = bool(domains or senders)
        self._held = 0
        self._offset = 0.0  # of the database's clock to our monotonic one; `refresh` measures it, and each turn

    def add_relay(self, limit: str, rate: str | None) -> None:
        """Limit a relay."""
        if rate is not None:
            self._relays[limit] = per_second(rate)
            self._any = True

    async def close(self) -> None:
        """Finish what is being written."""
        await self._writer.close()

    # Asking for a turn

    def apply_to(self, domain: str, sender: str, relay: str) -> list[tuple[str, float]]:
        """Return name and rate of the limits that hold for a mail; `relay` is the name of that relay's limit."""
        if not self._any and not self._slowed:
            return []
        named = (
            (f"domain:{domain}", self._domains.get(domain, self._domains.get("*"))),
            (relay, self._relays.get(relay)),
            (f"sender:{sender}", self._senders.get(sender, self._senders.get("*"))),
        )
        found = [(name, rate) for name, set_rate in named if (rate := self._rate(name, set_rate)) is not None]
        found.sort()
        return found

    async def turn(self, names: list[tuple[str, float]], lane: Lane, attempt: int, header: object) -> Turn:
        """Return when a mail may go; `header` is the appointment that it brings, if any.

        Urgent mail takes its places but waits for none, unless a server wanted a pause: a password reset must not
        stand behind a newsletter.
        """
        kept = self._kept(names, attempt, header)
        if kept is not None:
            limits = str(header).split(" ", 2)[2]
            return Turn(kept, _appointment(attempt, kept, limits), "")
        places = await asyncio.gather(*(self._writer.write(self._reserve, _Ask(name, rate)) for name, rate in names))
        (wait, _), limit = max(zip(places, (name for name, _ in names), strict=True))
        if lane is Lane.URGENT:
            pauses = [self._slowed[name].paused_until - self._now for name, _ in names if name in self._slowed]
            wait = max(pauses, default=0.0)
        words = [f"{name}={generation}" for (name, _), (_, generation) in zip(names, places, strict=True)]
        return Turn(wait, _appointment(attempt, wait, " ".join(words)), limit)

    def _kept(self, names: list[tuple[str, float]], attempt: int, header: object) -> float | None:
        """Return how many seconds are left of the appointment in `header` if it is one for this attempt and good."""
        if not isinstance(header, str):
            return None
        words = header.split(" ")
        try:
            made_for, left = int(words[0]), float(words[1])
            generations = {name: int(number) for name, _, number in (word.rpartition("=") for word in words[2:])}
        except (ValueError, IndexError):
            return None
        for name, _ in names:
            row = self._slowed.get(name)
            if name not in generations or (row is not None and generations[name] < row.generation):
                return None
        return left if made_for == attempt and 0 <= left < FORGET_SECONDS else None

    def hold(self, seconds: float, room: int) -> bool:
        """Say whether a mail with a place in so many seconds may wait in hand; then `held` must be awaited."""
        return seconds <= HOLD_SECONDS and self._held < room

    async def held(self, seconds: float) -> None:
        """Wait in hand."""
        self._held += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._held -= 1

    async def _reserve(self, connection: AsyncConnection, asks: list[_Ask]) -> list[tuple[float, int]]:
        """Give each a place of its own, in seconds from now; inside the transaction of the group commit."""
        rates = {ask.name: ask.rate for ask in asks}
        counts = Counter(ask.name for ask in asks)
        places: dict[str, list[tuple[float, int]]] = {}
        for name in sorted(counts):  # in one order everywhere: crosswise locks would deadlock in PostgreSQL
            await connection.execute(self._insert, [_fresh_row(name)])
            clock = self._database.clock
            next_at, earliest = self._shifted(limits.c.next_at), clock - BURST_SECONDS
            step = 1 / rates[name]
            taken = await connection.execute(
                sa.update(limits)
                .where(limits.c.name == name)
                .values(
                    next_at=sa.case((next_at > earliest, next_at), else_=earliest) + counts[name] * step,
                    climbs_from=self._shifted(limits.c.climbs_from),
                    paused_until=self._shifted(limits.c.paused_until),
                    asked_at=clock,
                )
                .returning(limits.c.next_at, limits.c.generation, limits.c.asked_at)
            )
            end, generation, now = taken.one()
            self._measure(now)
            places[name] = [(end - now - number * step, generation) for number in range(1, counts[name] + 1)]
        return [places[ask.name].pop() for ask in asks]

    def _shifted(self, column: sa.Column[float]) -> sa.ColumnElement[float]:
        """Return a time of a row as an SQL expression, moved back as far as the clock was set back since it was asked.

        The clock of a transaction that waited for the row is never behind, so without a setback nothing moves.
        """
        clock = self._database.clock
        return column - sa.case((limits.c.asked_at > clock, limits.c.asked_at - clock), else_=0.0)

    @property
    def _now(self) -> float:
        """The database's time."""
        return time.monotonic() + self._offset

    def _measure(self, now: float) -> None:
        self._offset = now - time.monotonic()

    def _rate(self, name: str, set_rate: float | None) -> float | None:
        """Return the rate of now: what servers left of it, climbing back; None where there is no limit."""
        row = self._slowed.get(name)
        if row is None:
            return set_rate
        climbed = row.climbed(self._now)
        if set_rate is not None:
            return min(set_rate, climbed)
        return None if climbed >= 2 * row.ceiling else climbed

    # Learning from what servers say

    async def heard(self, verdict: Verdict, domain: str, relay: str) -> None:
        """Learn from what became of a mail to `domain` by the relay with the limit `relay`."""
        name = f"domain:{domain}"
        self._sent[name] += 1
        self._sent[relay] += 1
        if verdict.kind is Kind.SENT:
            if self._refusals:
                self._refusals.pop(domain, None)
            if self._slowed and (row := self._slowed.get(name)) is not None and row.strikes:
                await self._writer.write(self._forgive, name)
        elif verdict.cause is Cause.THROTTLED:
            slow = relay if verdict.about_relay or self._is_relay(domain, relay) else name
            await self._change(_Change(slow, self._known_rate(slow), min(verdict.after or 0.0, LONGEST_WAIT)))
        elif verdict.cause is Cause.POLICY:
            self._refusals[domain] += 1
            if self._refusals[domain] >= REFUSALS:
                del self._refusals[domain]
                await self._change(_Change(name, self._known_rate(name), PAUSE_SECONDS, strike=True))

    def _is_relay(self, domain: str, relay: str) -> bool:
        now = time.monotonic()
        seen = self._throttled.setdefault(relay, {})
        seen[domain] = now
        for each in [each for each, at in seen.items() if now - at > SETTLE_SECONDS]:
            del seen[each]
        return len(seen) >= THROTTLED_DOMAINS

    def _known_rate(self, name: str) -> float:
        """Return the rate from which to lower: the one of now where there is one, else what was measured."""
        kind, _, key = name.partition(":")
        set_rate = self._relays.get(name) if kind == "relay" else self._domains.get(key, self._domains.get("*"))
        rate = self._rate(name, set_rate)
        if rate is not None:
            return rate
        seconds = max(1.0, time.monotonic() - self._counting_since)
        return max(self._sent[name] / seconds, self._sent_before[name] / self._seconds_before, UNMEASURED)

    async def _change(self, change: _Change) -> None:
        row = await self._writer.write(self._lower, change)
        if row is None:
            return
        self._slowed[change.name] = row
        metrics.SLOWED.labels(change.name.partition(":")[0]).inc()
        log.warning(
            "servers want less mail", limit=change.name, a_second=round(row.rate, 3),
            paused_seconds=round(max(0.0, row.paused_until - self._now)),
        )  # fmt: skip

    async def _lower(self, connection: AsyncConnection, changes: list[_Change]) -> list[_Slowed | None]:
        """Lower each rate once; None for who was not the first to ask."""
        done: list[_Slowed | None] = []
        for change in changes:
            await connection.execute(self._insert, [_fresh_row(change.name)])
            found = await connection.execute(
                sa.select(
                    limits.c.generation, limits.c.rate, limits.c.strikes,
                    self._shifted(limits.c.climbs_from).label("climbs_from"), self._database.clock.label("now"),
                )
                .where(limits.c.name == change.name)
                .with_for_update()
            )  # fmt: skip
            row = found.one()
            now = row.now
            self._measure(now)
            if row.rate is not None and now - row.climbs_from < SETTLE_SECONDS:
                done.append(None)
                continue
            changed = await connection.execute(
                sa.update(limits)
                .where(limits.c.name == change.name)
                .values(generation=row.generation + 1, asked_at=now, **_lowered(change, row, now))
                .returning(*_SLOWED)
            )
            done.append(_Slowed(*changed.one()))
        return done

    async def _forgive(self, connection: AsyncConnection, names: list[str]) -> list[None]:
        await connection.execute(sa.update(limits).where(limits.c.name.in_(names)).values(strikes=0))
        for name in names:
            if (row := self._slowed.get(name)) is not None:
                self._slowed[name] = replace(row, strikes=0)
        return [None] * len(names)

    async def refresh(self) -> None:
        """See what the other replicas learnt; every few seconds."""
        now = time.monotonic()
        self._sent_before, self._sent = self._sent, Counter()
        self._seconds_before, self._counting_since = max(1.0, now - self._counting_since), now
        async with self._database.read() as connection:
            clock = self._database.clock
            self._measure((await connection.execute(sa.select(clock))).scalar_one())
            climbs_from, paused_until = map(self._shifted, (limits.c.climbs_from, limits.c.paused_until))
            shifted = {"climbs_from": climbs_from, "paused_until": paused_until}
            columns = [shifted.get(name, limits.c[name]) for name in _Slowed.__dataclass_fields__]
            found = await connection.execute(
                sa.select(limits.c.name, *columns).where(climbs_from > clock - CLIMBED_SECONDS)
            )
            self._slowed = {name: _Slowed(*values) for name, *values in found}

    async def forget(self) -> None:
        """Delete limits that nobody has asked for in a week."""
        old = self._database.clock - FORGET_SECONDS
        unused = sa.select(limits.c.name).where(limits.c.next_at < old, limits.c.climbs_from < old)
        gone = FORGOTTEN_AT_ONCE
        while gone == FORGOTTEN_AT_ONCE:
            async with self._database.write(BACKGROUND_SECONDS) as connection:
                rows = await connection.execute(unused.limit(FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True))
                names = list(rows.scalars())
                if names:
                    await connection.execute(sa.delete(limits).where(limits.c.name.in_(names)))
            gone = len(names)


def _appointment(attempt: int, wait: float, words: str) -> str:
    """Return the header for a mail that waits `wait` seconds, as many of them on the ladder as the ladder can."""
    return f"{attempt} {max(0.0, wait - RETRY_QUEUES[-1].seconds):.3f} {words}"


def _fresh_row(name: str) -> dict[str, Any]:
    return {
        "name": name, "next_at": 0.0, "generation": 0, "climbs_from": 0.0, "paused_until": 0.0, "strikes": 0,
        "asked_at": 0.0,
    }  # fmt: skip


def _lowered(change: _Change, row: Any, now: float) -> dict[str, float | int]:
    strikes = row.strikes if now - row.climbs_from < STRIKE_SECONDS else 0
    pause = min(change.pause * 2**strikes, LONGEST_PAUSE)
    rate = max(change.rate / 2, SLOWEST)
    return {
        # After a pause for refusals the first mail is a probe: what it meets is known before the second goes.
        "rate": SLOWEST if change.strike else rate,
        "ceiling": max(change.rate, 2 * SLOWEST),
        "climbs_from": now + pause,
        "paused_until": now + pause,
        "next_at": now + (pause or 1 / rate),
        "strikes": strikes + change.strike,
    }
