"""The outbox publisher: publishes committed messages.

Fast path: after its commit a message is handed over in memory, without a read. Slow path: a sweep every
`SWEEP_SECONDS` finds the other messages (the broker was unavailable, the process crashed, the message was not due yet)
and publishes a chunk for each destination in turn. A message may be published twice; its consumer has an inbox.
"""

import asyncio
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

from bellhop import faults
from bellhop.amqp.errors import BrokerUnavailable, PublishError, Refused, Unroutable
from bellhop.amqp.publisher import Publisher
from bellhop.background import spawn
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.group_commit import GroupCommit
from services.gateway.outbox import store as outbox
from services.gateway.outbox.destinations import CHUNK, BackOffs
from services.gateway.outbox.entry_publisher import EntryPublisher, PendingEntry, PublishResult
from services.gateway.outbox.store import Destination, Entry, PartlyConfirmed, Released, ReleaseReason

SWEEP_SECONDS = 0.5
IDLE_SECONDS = 60.0
MAX_DESTINATIONS = 50
"""Destinations of one sweep; the next sweep continues with the following ones."""
MAX_IN_MEMORY = 20_000
MAX_IN_MEMORY_BYTES = 64 * 1024 * 1024
LEASE_SHARE = 0.6
"""The part of a lease within which a message may be published."""
COUNT_SHARE = 20
"""Pause between two counts, as a multiple of the duration of the last one."""

log = get_logger(__name__)


class OutboxPublisher:
    """Publishes the outbox."""

    def __init__(
        self, database: Database, commits: GroupCommit, publisher: Publisher, entry_publisher: EntryPublisher
    ) -> None:
        self._database = database
        self._commits = commits
        self._publisher = publisher
        self._entry_publisher = entry_publisher
        self._back_offs = BackOffs()
        self._handed_over: deque[tuple[Lease, Entry]] = deque()
        self._handed_over_bytes = 0
        self.woken = asyncio.Event()
        """Set when messages were handed over."""
        self._publishing: set[asyncio.Task[None]] = set()
        self._swept: Destination | None = None
        self._count_again_at = 0.0
        self.waiting = 0
        """Messages in the outbox at the last count, without those whose time has not come."""

    @property
    def has_capacity(self) -> bool:
        """Return whether a message handed over now would be published soon; if not, it is left to the sweep."""
        room = len(self._handed_over) < MAX_IN_MEMORY and self._handed_over_bytes < MAX_IN_MEMORY_BYTES
        return room and self._publisher.failure is None

    @property
    def is_available(self) -> bool:
        """Return whether messages can be published now."""
        return self._publisher.failure is None

    def hand_over(self, entries: list[Entry]) -> None:
        """Publish messages whose rows this process committed as claimed."""
        lease = Lease.now()
        handed_over = [(lease, entry) for entry in entries if not entry.due_at]
        self._handed_over.extend(handed_over)
        self._handed_over_bytes += sum(len(entry.message.body) for _, entry in handed_over)
        self.woken.set()

    async def stop(self, timeout: float) -> None:
        """Publish what was handed over, within `timeout` seconds; the rest stays in the outbox.

        The periodic jobs must have been stopped.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while await self.publish_handed_over() is not None:
                    pass
                if self._publishing:
                    await asyncio.wait(self._publishing)
        for task in self._publishing:
            task.cancel()
        if self._publishing:
            await asyncio.wait(self._publishing)

    async def publish_handed_over(self) -> float | None:
        """Publish a chunk of what was handed over; return 0 if there may be more, None if not."""
        if not self._handed_over:
            return None
        chunk = [self._handed_over.popleft() for _ in range(min(CHUNK, len(self._handed_over)))]
        self._handed_over_bytes -= sum(len(entry.message.body) for _, entry in chunk)
        # Not awaited here: the next chunk may already fill the publisher's window while this one is confirmed.
        spawn(self._publish_chunk(chunk), self._publishing, "publishing a chunk")
        if len(self._publishing) >= 4:
            await asyncio.wait(self._publishing, return_when=asyncio.FIRST_COMPLETED)
        return 0.0

    async def _publish_chunk(self, chunk: list[tuple["Lease", Entry]]) -> None:
        await self._publish([entry for _, entry in chunk], chunk[0][0], chunk[-1][0])

    async def sweep(self) -> float | None:
        """Publish a chunk of the rows of each destination in turn; return 0 if there may be more, None if not."""
        await self._count()
        if not self.waiting or self._publisher.failure is not None:
            return None
        return 0.0 if await self._sweep_destinations() else None

    async def _count(self) -> None:
        """Count the waiting messages; a count that takes long is repeated rarely."""
        began = monotonic()
        if began < self._count_again_at:
            return
        async with self._database.read() as connection:
            self.waiting = await outbox.waiting(connection)
        self._count_again_at = monotonic() + COUNT_SHARE * (monotonic() - began)

    async def _sweep_destinations(self) -> bool:
        """Publish one chunk of each of some destinations; return whether more can be published now."""
        more = progress = False
        for _ in range(MAX_DESTINATIONS):
            async with self._database.read() as connection:
                self._swept = await outbox.next_destination(connection, self._swept)
            if self._swept is None:
                return more
            if self._back_offs.backs_off(self._swept):
                continue
            size = self._back_offs.size(self._swept)
            before = Lease.now()
            async with self._database.write() as connection:
                claimed = await outbox.claim(connection, self._swept, size)
            sent = bool(claimed) and await self._publish(claimed, before, Lease.now())
            if self._publisher.failure is not None:
                return False
            progress = progress or sent
            more = more or (sent and len(claimed) == size)
        return progress  # there are more destinations; if all of these refuse, the others wait for the next sweep

    async def _publish(self, entries: list[Entry], first: "Lease", last: "Lease") -> bool:
        """Publish messages and release those that are not confirmed; return whether all were sent.

        None of our leases on them is earlier than `first`, or later than `last`.
        """
        faults.point("outbox.claimed")
        pending = [await self._begin(entry, first) for entry in entries]
        published: list[Entry] = []
        partly: list[PartlyConfirmed] = []
        kept: dict[ReleaseReason, list[Entry]] = {}
        refusals: dict[Destination, str] = {}
        for one in pending:
            result = await self._entry_publisher.end(one) if isinstance(one, PendingEntry) else one
            entry, error = result.entry, result.error
            if error is None:
                published.append(entry)
                continue
            if result.left != (entry,):
                partly.append((entry, result.left))
                continue
            reason = self._release_reason(error)
            kept.setdefault(reason, []).append(entry)
            if reason in (ReleaseReason.REFUSED, ReleaseReason.HANGING):
                refusals[entry.destination] = str(error)
        self._update_back_offs(published, refusals)
        faults.point("outbox.confirmed")
        try:
            if published:
                await self._commits.write(outbox.delete_published, published, background=True)
            if partly:
                await self._commits.write(outbox.replace, partly, background=True)
            for reason, some in kept.items():
                await self._commits.write(outbox.release, Released(some, reason, last.ends), background=True)
        except DatabaseUnavailable as error:
            # The rows stay, their leases expire, and the messages are published again.
            log.warning("published messages stay in the outbox for now", count=len(entries), reason=str(error))
        return ReleaseReason.UNSENT not in kept

    def _release_reason(self, error: PublishError) -> ReleaseReason:
        if isinstance(error, BrokerUnavailable):
            return ReleaseReason.UNSENT
        if isinstance(error, Refused | Unroutable):
            return ReleaseReason.REFUSED
        # While nothing is confirmed at all, the destination is not the cause.
        return ReleaseReason.HANGING if self._publisher.failure is None else ReleaseReason.UNKNOWN

    def _update_back_offs(self, published: list[Entry], refusals: dict[Destination, str]) -> None:
        taken = {entry.destination for entry in published}
        for destination in taken - refusals.keys():
            self._back_offs.note_confirmed(destination)
        for destination, reason in refusals.items():
            self._back_offs.note_refused(destination, reason, some_confirmed=destination in taken)

    async def _begin(self, entry: Entry, lease: "Lease") -> PendingEntry | PublishResult:
        if lease.over:
            error = BrokerUnavailable("the lease ran out before the message could be published")
            return PublishResult(entry, (entry,), error)
        if self._back_offs.backs_off(entry.destination):
            return PublishResult(entry, (entry,), BrokerUnavailable("the destination refused messages a moment ago"))
        return await self._entry_publisher.begin(entry)


class Lease(NamedTuple):
    """A claim of this process, by `monotonic`."""

    ends: float
    safe_until: float
    """Until when a message may be published: its confirm needs time, too."""

    @classmethod
    def now(cls) -> "Lease":
        """Return the lease of rows that were claimed a moment ago, or will be in a moment."""
        seconds = outbox.LEASE_MS / 1000
        return cls(monotonic() + seconds, monotonic() + seconds * LEASE_SHARE)

    @property
    def over(self) -> bool:
        """Return whether nothing may be published under it any more."""
        return monotonic() > self.safe_until
