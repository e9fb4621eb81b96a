"""How fast tasks may be sent: to a domain, for a sender, through a relay. All replicas share one rate.

The database holds the time of each limit's next free slot. To reserve a slot moves that time forward by 1/rate, in one
transaction with all tasks that ask at the same moment. A task whose slot is now is sent immediately. A task whose slot
is later waits for it in a retry queue and carries its reservation in a header (`reservations.py`): so waiting needs
neither a connection nor a place among the deliveries in hand, and counts no attempt. A task without a limit costs two
look-ups in dictionaries.

Limits come from the settings, and from what servers answer (`adaptive_rate.py`).
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import sqlalchemy as sa

from bellhop.contracts.tasks import Lane
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.tasks import reservations
from bellhop.tasks.adaptive_rate import (
    LONGEST_WAIT_SECONDS,
    PAUSE_SECONDS,
    Answer,
    Change,
    Complaints,
    Lowered,
    Meter,
)
from bellhop.tasks.rate_store import KEEP_SECONDS, RateStore, Request
from bellhop.tasks.rates import per_second
from bellhop.tasks.reservations import Reservation

HOLD_SECONDS = 1.0
"""A task whose slot comes within this time waits in memory: a retry queue would take as long."""

log = get_logger(__name__)


class SendRate:
    """All rate limits, as seen by one replica."""

    def __init__(
        self,
        database: Database,
        table: sa.Table,
        domains: dict[str, str],
        senders: dict[str, str],
        lowered: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`domains` and `senders`: rates by name as in the settings; `*` is every name without a rate of its own.

        `lowered` is called with `domain`, `sender` or `relay` when such a limit is lowered.
        """
        self._store = RateStore(database, table)
        self._writer = GroupCommit(database)
        self._domains = {name.lower(): per_second(rate) for name, rate in domains.items()}
        self._senders = {name: per_second(rate) for name, rate in senders.items()}
        self._relays: dict[str, float] = {}
        self._count_lowered = lowered
        self._lowered: dict[str, Lowered] = {}
        self._meter = Meter()
        self._complaints = Complaints()
        self._any = bool(domains or senders)
        self._held = 0

    def add_relay(self, limit: str, rate: str | None) -> None:
        """Set the rate of a relay; `limit` is the limit's name, `relay:<name>`."""
        if rate is not None:
            self._relays[limit] = per_second(rate)
            self._any = True

    async def close(self) -> None:
        """Finish what is being written."""
        await self._writer.close()

    # Reserving a slot

    def limits_of(self, domain: str, sender: str, relay: str) -> list[tuple[str, float]]:
        """Return name and rate of each limit of a task; `relay` is the name of that relay's limit."""
        if not self._any and not self._lowered:
            return []
        named = (
            (f"domain:{domain}", self._domains.get(domain, self._domains.get("*"))),
            (relay, self._relays.get(relay)),
            (f"sender:{sender}", self._senders.get(sender, self._senders.get("*"))),
        )
        found = [(name, rate) for name, set_rate in named if (rate := self._rate(name, set_rate)) is not None]
        found.sort()
        return found

    async def reserve(self, limits: list[tuple[str, float]], lane: Lane, attempt: int, header: object) -> Reservation:
        """Return when a task may run; `header` is the reservation that it carries, if any.

        Urgent tasks use up slots but do not wait for them, except while a server asked for a pause: a password reset
        must not wait behind a newsletter.

        Raises:
            DatabaseUnavailable: no slot was reserved, or it is lost.
        """
        names = [name for name, _ in limits]
        carried = reservations.renew(reservations.read(header), attempt, names, self._generation, KEEP_SECONDS)
        if carried is not None:
            return carried
        slots = await asyncio.gather(*(self._writer.write(self._store.reserve, Request(*each)) for each in limits))
        (wait, _), limit = max(zip(slots, names, strict=True))
        if lane is Lane.URGENT:
            pauses = [row.paused_until - self._store.now for name in names if (row := self._lowered.get(name))]
            wait = max(pauses, default=0.0)
        generations = [(name, generation) for name, (_, generation) in zip(names, slots, strict=True)]
        return reservations.make(attempt, wait, generations, limit)

    def _generation(self, name: str) -> int:
        row = self._lowered.get(name)
        return 0 if row is None else row.generation

    def fits_in_memory(self, seconds: float, room: int) -> bool:
        """Return whether a task may wait in memory for its slot; then the caller must call `wait_in_memory`."""
        return seconds <= HOLD_SECONDS and self._held < room

    async def wait_in_memory(self, seconds: float) -> None:
        """Wait, counted among the tasks in memory."""
        self._held += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._held -= 1

    def _rate(self, name: str, set_rate: float | None) -> float | None:
        """Return the current rate; None where there is no limit."""
        row = self._lowered.get(name)
        return set_rate if row is None else row.current(self._store.now, set_rate)

    # Learning from what servers answer

    async def observe(
        self, answer: Answer, domain: str, relay: str, *, after: float | None = None, about_relay: bool = False
    ) -> None:
        """Learn from the answer to a task for `domain` by the relay with the limit `relay`.

        `after`: seconds that the server asked us to wait. `about_relay`: the server did not know the domain yet when
        it answered.

        Raises:
            DatabaseUnavailable: nothing was learnt.
        """
        name = f"domain:{domain}"
        self._meter.count(name, relay)
        if answer is Answer.ACCEPTED:
            self._complaints.accepted(domain)
            if self._lowered and (row := self._lowered.get(name)) is not None and row.strikes:
                await self._writer.write(self._store.reset_strikes, name)
                if (row := self._lowered.get(name)) is not None:
                    self._lowered[name] = replace(row, strikes=0)
        elif answer is Answer.THROTTLED:
            slow = relay if about_relay or self._complaints.is_relay(domain, relay) else name
            await self._lower(Change(slow, self._known_rate(slow), min(after or 0.0, LONGEST_WAIT_SECONDS)))
        elif answer is Answer.REFUSED and self._complaints.refused(domain):
            await self._lower(Change(name, self._known_rate(name), PAUSE_SECONDS, strike=True))

    def _known_rate(self, name: str) -> float:
        """Return the rate from which to lower: the current one if there is a limit, otherwise the measured one."""
        kind, _, key = name.partition(":")
        set_rate = self._relays.get(name) if kind == "relay" else self._domains.get(key, self._domains.get("*"))
        rate = self._rate(name, set_rate)
        return self._meter.rate(name) if rate is None else rate

    async def _lower(self, change: Change) -> None:
        row = await self._writer.write(self._store.lower, change)
        if row is None:
            return
        self._lowered[change.name] = row
        self._count_lowered(change.name.partition(":")[0])
        log.warning(
            "a server asked for a lower rate", limit=change.name, a_second=round(row.rate, 3),
            paused_seconds=round(max(0.0, row.paused_until - self._store.now)),
        )  # fmt: skip

    async def refresh(self) -> None:
        """Learn what the other replicas learnt; call it every few seconds."""
        self._meter.next_interval()
        self._lowered = await self._store.load()

    async def delete_old(self) -> None:
        """Delete limits that were not used for a week."""
        await self._store.delete_old()
