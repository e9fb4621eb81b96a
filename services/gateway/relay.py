"""The relay: what a commit promised goes out to the broker.

Two ways in, one way out. Right after its commit a message is handed over in memory, so that the usual way costs no
read. Whatever that way lost - the broker was away, the process died, the message was not due yet - is found by the
sweep. A message may go out twice; the inbox of its consumer knows it.
"""

import asyncio
from collections import deque

from bellhop import faults
from bellhop.amqp.errors import PublishError
from bellhop.amqp.publisher import Publisher
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseAway
from bellhop.sql.group_commit import GroupCommit
from services.gateway.store import outbox
from services.gateway.store.outbox import Entry

SWEEP_SECONDS = 0.5
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
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
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

    def start(self) -> None:
        """Relay from now on."""
        self._tasks = [asyncio.create_task(self._run(), name="relay"), asyncio.create_task(self._sweep(), name="sweep")]

    async def stop(self, timeout: float) -> None:
        """Publish what was handed over, within `timeout` seconds; the rest stays in the outbox."""
        self._stopping = True
        self._wake.set()
        if not self._tasks:
            return
        await asyncio.wait(self._tasks[:1], timeout=timeout)
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _run(self) -> None:
        while self._handed_over or not self._stopping:
            if not self._handed_over:
                self._wake.clear()
                await self._wake.wait()
                continue
            chunk = [self._handed_over.popleft() for _ in range(min(CHUNK, len(self._handed_over)))]
            # Not awaited here: the next chunk may already fill the publisher's window while this one is confirmed.
            task = asyncio.create_task(self._publish(chunk))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)
            if len(self._publishing) >= 4:
                await asyncio.wait(self._publishing, return_when=asyncio.FIRST_COMPLETED)
        if self._publishing:
            await asyncio.wait(self._publishing)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self._sweep_once()
            except DatabaseAway as error:
                log.warning("the relay waits for the database", reason=str(error))

    async def _sweep_once(self) -> None:
        async with self._database.read() as connection:
            self.waiting, _ = await outbox.depth(connection)
        while self.waiting and self._publisher.trouble is None:
            async with self._database.write() as connection:
                claimed = await outbox.claim(connection, CHUNK)
            await self._publish(claimed)
            if len(claimed) < CHUNK:
                return

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
