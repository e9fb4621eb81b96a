"""Report outcomes of tasks: exchange `outcomes`, routing key `<kind>.<lane>.<state>`."""

import asyncio
from collections.abc import Callable
from datetime import timedelta

from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.kinds import TaskKind
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.tasks import CancelTask, Lane
from bellhop.tasks.waiting import until_available

EXCHANGE = "outcomes"


class Reporter:
    """Publishes the outcomes of one kind of task."""

    def __init__(
        self,
        publisher: Publisher,
        kind: TaskKind,
        source: str,
        stopping: asyncio.Event,
        reported: Callable[[str, str], None],
    ) -> None:
        """`source` is the service, as events name it. `reported` is called with lane and state of each outcome."""
        self._publisher = publisher
        self._kind = kind
        self._source = source
        self._stopping = stopping
        self._reported = reported

    async def report(self, delivery: Delivery, outcome: Outcome, body: bytes | None = None) -> None:
        """Publish the outcome of a delivery's task; return when the broker has it. `body` is its JSON, if known.

        Raises:
            PublishError: the broker stayed unavailable for longer than a delivery may wait.
        """
        # The same step of the same task is the same event, however often it is reported.
        identity = f"{outcome.task_id}/{outcome.round}/{outcome.attempt}/{outcome.state}"
        envelope = Envelope(
            type=self._kind.outcome_type(outcome.state),
            source=self._source,
            id=identity,
            time=outcome.at,
            subject=outcome.task_id,
            traceparent=delivery.envelope.traceparent,
        )
        key = self._kind.outcome_key(outcome.lane, outcome.state)
        message = Message(body or outcome.model_dump_json(exclude_none=True).encode(), envelope)
        await until_available(self._stopping, lambda: self._publisher.publish(EXCHANGE, key, message))
        self._reported(outcome.lane or Lane.NORMAL.value, outcome.state)


def cancelled(task: CancelTask, attempt: int, *, uncertain: bool) -> Outcome:
    """Return the outcome of a task that will not be begun, or not be tried again."""
    return Outcome(
        task_id=task.task_id,
        round=task.round,
        attempt=attempt,
        state=State(task.state),
        at=now(),
        reply=task.reason,
        uncertain=uncertain,
    )


def due_in(seconds: float) -> dict[str, object]:
    """Return the field of an outcome that says when the next attempt is due."""
    return {"retry_at": now() + timedelta(seconds=seconds)}
