"""The relay: what a commit promised goes out to the broker.

Two ways in, one way out. Right after its commit a message is handed over in memory, so that the usual way costs no
read. Whatever that way lost - the broker was away, the process died, the message was not due yet - is found by the
sweep. A message may go out twice; the inbox of its consumer knows it.
"""

import asyncio
from collections import deque
from contextlib import suppress

from bellhop import faults
from bellhop.amqp.errors import PublishError
from bellhop.amqp.publisher import Publisher
from bellhop.background import Background, spawn
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseAway
from bellhop.sql.group_commit import GroupCommit
from services.gateway.store import outbox
from services.gateway.store.outbox import Entry

SWEEP_SECONDS = 0.5
IDLE_SECONDS = 60.0
CHUNK = 500
MAX_IN_MEMORY = 20_000

log = get_logger(__name__)


class Relay:
    """Publishes the outbox."""

    def __init__(self, database: Database, commits: GroupCommit, publisher: Publisher) -> None:
        self._database = database
        self._commits = commits
        self._publisher = publisher
        self._handed_over: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._publishing: set[asyncio.Task[None]] = set()
        self._trouble: str | None = None
        self.waiting = 0
        """Messages that were due and not out at the last look."""

    @property
    def takes_more(self) -> bool:
        """Say whether a message handed over now would go out soon; if not, it is left to the sweep."""
        return len(self._handed_over) < MAX_IN_MEMORY and self._publisher.trouble is None

    def hand_over(self, entries: list[Entry]) -> None:
        """Publish messages whose rows this process committed as claimed."""
        self._handed_over.extend(entry for entry in entries if not entry.due_at)
        self._wake.set()

    def start(self, background: Background) -> None:
        """Relay from now on."""
        background.every("publishing", IDLE_SECONDS, self._publish_handed_over, wake=self._wake)
        background.every("sweeping the outbox", SWEEP_SECONDS, self._sweep)

    async def stop(self, timeout: float) -> None:
        """Publish what was handed over, within `timeout` seconds; the rest stays in the outbox.

        The background must have been stopped.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while await self._publish_handed_over() is not None:
                    pass
                if self._publishing:
                    await asyncio.wait(self._publishing)
        for task in self._publishing:
            task.cancel()
        if self._publishing:
            await asyncio.wait(self._publishing)

    async def _publish_handed_over(self) -> float | None:
        """Publish a chunk of what was handed over; say whether there is more."""
        if not self._handed_over:
            return None
        chunk = [self._handed_over.popleft() for _ in range(min(CHUNK, len(self._handed_over)))]
        # Not awaited here: the next chunk may already fill the publisher's window while this one is confirmed.
        spawn(self._publish(chunk), self._publishing, "publishing a chunk")
        if len(self._publishing) >= 4:
            await asyncio.wait(self._publishing, return_when=asyncio.FIRST_COMPLETED)
        return 0.0

    async def _sweep(self) -> float | None:
        """Publish what the usual way lost; say whether there is more."""
        async with self._database.read() as connection:
            self.waiting, _ = await outbox.depth(connection)
        if not self.waiting or self._publisher.trouble is not None:
            return None
        async with self._database.write() as connection:
            claimed = await outbox.claim(connection, CHUNK)
        await self._publish(claimed)
        return 0.0 if len(claimed) == CHUNK else None

    async def _publish(self, entries: list[Entry]) -> None:
        faults.point("relay.claimed")
        confirms = [(entry, await self._begin(entry)) for entry in entries]
        published: list[Entry] = []
        kept: list[Entry] = []
        for entry, confirm in confirms:
            (published if await self._confirmed(confirm) else kept).append(entry)
        faults.point("relay.confirmed")
        try:
            if published:
                await self._commits.write(outbox.delete_published, published, patient=True)
            if kept:
                await self._commits.write(outbox.release, kept, patient=True)
        except DatabaseAway as error:
            # The rows stay, their claims run out, and the messages go out once more.
            log.warning("published messages stay in the outbox for now", count=len(entries), reason=str(error))

    async def _begin(self, entry: Entry) -> "asyncio.Future[None] | PublishError":
        try:
            return await self._publisher.begin(entry.exchange, entry.routing_key, entry.message)
        except PublishError as error:
            return error
        except Exception as error:
            # One message that cannot be sent at all must not keep the others from going out.
            log.exception("a message cannot be published", exchange=entry.exchange, id=entry.message.envelope.id)
            return PublishError(f"cannot be published: {error}")

    async def _confirmed(self, confirm: "asyncio.Future[None] | PublishError") -> bool:
        try:
            if isinstance(confirm, PublishError):
                raise confirm
            await confirm
        except PublishError as error:
            if self._trouble is None:
                log.warning("messages stay in the outbox until RabbitMQ takes them", reason=str(error))
            self._trouble = str(error)
            return False
        if self._trouble is not None:
            log.info("messages go out again")
            self._trouble = None
        return True
