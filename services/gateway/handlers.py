"""What the gateway does with what comes back."""

from pydantic import ValidationError

from bellhop.amqp.errors import Hold, Reject
from bellhop.amqp.message import Delivery
from bellhop.contracts.outcomes import Outcome
from bellhop.contracts.reactions import MailerStarted
from bellhop.sql.database import DatabaseUnavailable
from bellhop.sql.group_commit import GroupCommit
from services.gateway import metrics
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.events.reactions import ReactionTypes
from services.gateway.tasks.live import LiveOutcomes
from services.gateway.tasks.store import Ledger
from services.gateway.tasks.waiters import Waiters


async def apply_outcome(
    delivery: Delivery, *, commits: GroupCommit, ledger: Ledger, waiters: Waiters, live: LiveOutcomes
) -> None:
    """Note in the ledger what became of a task, then tell those who wait for it and those who watch.

    Watchers are told before the delivery is acked, so that a crash in between repeats it.
    """
    try:
        outcome = Outcome.read(delivery.body)
    except ValidationError as error:
        raise Reject(f"not an outcome: {error.error_count()} fields are wrong, first {error.errors()[0]}") from None
    try:
        await commits.write(ledger.apply, outcome, background=True)
    except DatabaseUnavailable as error:
        raise Hold(str(error)) from error
    waiters.wake([outcome.task_id])
    await live.show(delivery, outcome)


async def store_dead_letter(
    delivery: Delivery, *, commits: GroupCommit, dead_letters: DeadLetters, waiters: Waiters
) -> None:
    """Keep a dead letter until somebody decides about it; its task, if it has one, fails in the same commit."""
    try:
        task_id = await commits.write(dead_letters.add, delivery, background=True)
    except DatabaseUnavailable as error:
        raise Hold(str(error)) from error
    if task_id is not None:
        waiters.wake([task_id])
    metrics.DEAD_LETTERS.inc()


async def store_unrouted(delivery: Delivery, *, commits: GroupCommit, dead_letters: DeadLetters) -> None:
    """Keep an event of a type that no queue is bound to, for a replay."""
    try:
        await commits.write(dead_letters.add_unrouted, delivery, background=True)
    except DatabaseUnavailable as error:
        raise Hold(str(error)) from error
    metrics.UNROUTED.inc()


async def note_reactions(delivery: Delivery, *, commits: GroupCommit, reactions: ReactionTypes) -> None:
    """Note which event types a mailer reacts to, and route by it from now on."""
    try:
        started = MailerStarted.read(delivery.body)
    except ValidationError as error:
        raise Reject(f"not an announcement: {error.error_count()} fields are wrong") from None
    try:
        await commits.write(reactions.announce, list(started.reacts_to), background=True)
        await reactions.load()
    except DatabaseUnavailable as error:
        raise Hold(str(error)) from error
