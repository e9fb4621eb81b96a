"""The periodic jobs of the gateway. Every replica runs all of them; locks in the database prevent double work."""

from bellhop.service import Job
from services.gateway.broadcasts import dispatcher
from services.gateway.leaderboards import boards, marks
from services.gateway.outbox import publisher
from services.gateway.parts import Gateway
from services.gateway.system import retention
from services.gateway.tasks import overdue

WITHDRAW_SECONDS = 0.5
ROUTING_SECONDS = 5.0
"""How long until every gateway knows an event type that a mailer announced."""


async def withdraw(gateway: Gateway) -> float | None:
    """End some tasks of people who get no more mail; return 0 if there may be more."""
    ended = await gateway.withdrawals.step()
    if ended is None:
        return None
    gateway.waiters.wake(ended)
    return 0.0


JOBS: tuple[Job[Gateway], ...] = (
    Job("publishing", publisher.IDLE_SECONDS, lambda gateway: gateway.outbox_publisher.publish_handed_over(),
        wake=lambda gateway: gateway.outbox_publisher.woken),
    Job("sweeping the outbox", publisher.SWEEP_SECONDS, lambda gateway: gateway.outbox_publisher.sweep()),
    Job("broadcasts", dispatcher.IDLE_SECONDS, lambda gateway: gateway.newsletter.dispatcher.step(),
        wake=lambda gateway: gateway.newsletter.dispatcher.woken, limit=dispatcher.ROUND_SECONDS),
    Job("withdrawals", WITHDRAW_SECONDS, withdraw),
    Job("routing by templates", ROUTING_SECONDS, lambda gateway: gateway.reactions.load()),
    Job("marking scores", marks.MARK_SECONDS, lambda gateway: gateway.marks.publish()),
    Job("reading the names of boards", boards.LATER_SECONDS, lambda gateway: gateway.boards.read_existing()),
    Job("asking for late outcomes", overdue.ROUND_SECONDS, lambda gateway: gateway.overdue.round()),
    Job("retention", retention.ROUND_SECONDS, lambda gateway: gateway.retention.round(),
        limit=retention.ROUND_SECONDS),
)  # fmt: skip
