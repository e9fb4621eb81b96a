"""What happens around an attempt: claim the task, record the result, report the outcome. A worker adds the attempt.

async with worker.alone(key):
    claim = await worker.claim(key, delivery.attempt)
    if claim.decision is ClaimDecision.RUN:
        ...  # the attempt
        await worker.record(result)
        await worker.report(delivery, outcome)
    else:
        await worker.report_again(delivery, key, claim)
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bellhop.amqp.errors import Hold, Retry
from bellhop.amqp.message import Delivery
from bellhop.contracts.outcomes import Outcome
from bellhop.contracts.tasks import CancelTask
from bellhop.sql.database import DatabaseUnavailable
from bellhop.tasks.claims import Claim, ClaimDecision, InboxState, Key, Result
from bellhop.tasks.decoding import decode
from bellhop.tasks.inbox import Inbox
from bellhop.tasks.outcomes import Reporter, cancelled
from bellhop.tasks.waiting import Deadline, until_available


class Worker:
    """The tasks of one kind, as one replica handles them."""

    def __init__(
        self, inbox: Inbox, reporter: Reporter, stopping: asyncio.Event, reported_again: Callable[[], None]
    ) -> None:
        """`reported_again` is called for each delivery of a task that needs no attempt."""
        self.inbox = inbox
        self._reporter = reporter
        self._stopping = stopping
        self._reported_again = reported_again
        self._in_hand: set[Key] = set()

    @asynccontextmanager
    async def alone(self, key: Key) -> AsyncIterator[Deadline]:
        """Wait until no other delivery of this task is in hand here; yield the deadline for further waits.

        Another copy of the message may be in hand, or a redelivery after a lost connection.

        Raises:
            Hold: the other delivery took too long.
        """
        deadline = Deadline(self._stopping)
        while key in self._in_hand:
            await deadline.pause(Hold("another copy of this task is in hand"))
        self._in_hand.add(key)
        try:
            yield deadline
        finally:
            self._in_hand.discard(key)

    def check_lease(self) -> None:
        """Raise DatabaseUnavailable if other replicas may have taken over what this one holds."""
        if not self.inbox.fresh:
            raise DatabaseUnavailable("our heartbeat is late, so another replica may take over what we hold")

    async def claim(self, key: Key, attempt: int) -> Claim:
        """Ask to make an attempt; waits for the database.

        Raises:
            DatabaseUnavailable: it took too long. The claim may be committed; it is given back later.
        """

        async def claim() -> Claim:
            self.check_lease()
            return await self.inbox.claim(key, attempt)

        try:
            return await until_available(self._stopping, claim)
        except DatabaseUnavailable:
            self.inbox.record_late(Result(key, InboxState.RETRY_PENDING, attempt - 1, uncertain=True))
            raise

    async def record(self, result: Result) -> InboxState:
        """Store the result of an attempt; return the state of its row. Waits for the database.

        Raises:
            DatabaseUnavailable: it took too long. The result is stored when the database is available again.
        """
        try:
            return await until_available(self._stopping, lambda: self.inbox.record(result))
        except DatabaseUnavailable:
            self.inbox.record_late(result)
            raise

    async def give_back(self, key: Key, attempt: int, claim: Claim, *, uncertain: bool) -> None:
        """End a claim without a result, so that another replica may make this attempt. Idempotent."""
        await self.record(Result(key, InboxState.RETRY_PENDING, attempt - 1, uncertain, claim.outcome))

    async def report(self, delivery: Delivery, outcome: Outcome, body: bytes | None = None) -> None:
        """Report an outcome; see `Reporter.report`."""
        await self._reporter.report(delivery, outcome, body)

    async def report_again(self, delivery: Delivery, key: Key, claim: Claim) -> None:
        """Report a task that needs no attempt.

        Raises:
            Retry: this attempt was made before, and the next one follows.
        """
        self._reported_again()
        outcome = await self._report_end(delivery, CancelTask(task_id=key[0], round=key[1]), claim)
        if claim.decision is ClaimDecision.ALREADY_ATTEMPTED:
            after = (outcome.retry_at - outcome.at).total_seconds() if outcome.retry_at else None
            raise Retry(outcome.reply or "this attempt was made before", after=after)

    async def cancel(self, delivery: Delivery) -> None:
        """Cancel a task that has not begun or waits for its next attempt; report a finished one again.

        During an attempt the request is stored, and the outcome of the attempt reports the result.
        """
        task = decode(CancelTask, delivery)
        claim = await self.inbox.cancel((task.task_id, task.round))
        if claim.decision is ClaimDecision.FINISHED:
            await self._report_end(delivery, task, claim)

    async def _report_end(self, delivery: Delivery, task: CancelTask, claim: Claim) -> Outcome:
        """Report the stored outcome of a claim; without one the task was cancelled."""
        if claim.outcome is None:
            outcome = cancelled(task, claim.attempt, uncertain=claim.uncertain)
        else:
            outcome = Outcome.read(claim.outcome)
        await self.report(delivery, outcome)
        return outcome
