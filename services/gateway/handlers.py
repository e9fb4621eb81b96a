"""The handlers of messages from the other services."""

from bellhop.amqp.message import Delivery
from bellhop.contracts.outcomes import Outcome
from bellhop.contracts.reactions import MailerStarted
from bellhop.tasks.decoding import decode
from services.gateway import metrics
from services.gateway.parts import Gateway


async def apply_outcome(gateway: Gateway, delivery: Delivery) -> None:
    """Record the outcome of a task in the ledger, then notify the clients that wait for it and those that watch it.

    They are notified before the delivery is acked, so that a crash in between repeats it. Idempotent.
    """
    outcome = decode(Outcome, delivery)
    await gateway.commits.write(gateway.ledger.apply, outcome, background=True)
    gateway.waiters.wake([outcome.task_id])
    await gateway.live.show(delivery, outcome)


async def store_dead_letter(gateway: Gateway, delivery: Delivery) -> None:
    """Keep a dead letter until a person decides about it; its task, if it has one, fails in the same commit."""
    task_id = await gateway.commits.write(gateway.dead_letters.add, delivery, background=True)
    if task_id is not None:
        gateway.waiters.wake([task_id])
    metrics.DEAD_LETTERS.inc()


async def store_unrouted(gateway: Gateway, delivery: Delivery) -> None:
    """Keep an event of a type that no queue is bound to, for a replay."""
    await gateway.commits.write(gateway.dead_letters.add_unrouted, delivery, background=True)
    metrics.UNROUTED.inc()


async def note_reactions(gateway: Gateway, delivery: Delivery) -> None:
    """Record which event types a mailer reacts to, and route by it from now on."""
    started = decode(MailerStarted, delivery)
    await gateway.commits.write(gateway.reactions.announce, list(started.reacts_to), background=True)
    await gateway.reactions.load()
