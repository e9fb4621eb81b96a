"""Report what became of a task: exchange `outcomes`, routing key `mail.<lane>.<state>`."""

from datetime import timedelta

from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import MAILER
from bellhop.contracts.mail import CancelTask, Lane, MailTask, mail_document
from bellhop.contracts.outcomes import Outcome, State
from services.mailer import metrics
from services.mailer.relays.replies import Cause, Kind, Verdict

EXCHANGE = "outcomes"


def of_attempt(task: MailTask, attempt: int, state: State, verdict: Verdict, **more: object) -> Outcome:
    """Return the outcome of one attempt; `more` are further fields of `Outcome`."""
    fields: dict[str, object] = {
        "task_id": task.task_id,
        "round": task.round,
        "attempt": attempt,
        "state": state,
        "at": now(),
        "code": verdict.code,
        "enhanced": verdict.enhanced,
        "reply": verdict.sentence,
        "uncertain": verdict.uncertain,
        "owner": task.owner,
        "lane": task.lane.value,
    }
    if verdict.kind is not Kind.SENT and verdict.cause is not Cause.OTHER:
        fields["cause"] = verdict.cause.value
    return Outcome.model_validate(fields | _origin(task) | more)


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


def queued(task: MailTask, event: Envelope) -> Outcome:
    """Return the first outcome of a task that `event` set off: it tells the ledger that there is such a task."""
    return _unattempted(
        task,
        State.QUEUED,
        document=mail_document(task),
        event_source=event.source,
        event_type=event.type,
        event_time=event.time,
    )


def suppressed(task: MailTask, reason: str) -> Outcome:
    """Return the outcome of a task whose address gets no mail."""
    return _unattempted(task, State.SUPPRESSED, reply=f"The address is suppressed: {reason}")


def _unattempted(task: MailTask, state: State, **more: object) -> Outcome:
    fields = {
        "task_id": task.task_id,
        "round": task.round,
        "attempt": 0,
        "state": state,
        "at": now(),
        "owner": task.owner,
        "lane": task.lane.value,
    }
    return Outcome.model_validate(fields | _origin(task) | more)


def due_in(seconds: float) -> dict[str, object]:
    """Return the field that says when the next attempt is due."""
    return {"retry_at": now() + timedelta(seconds=seconds)}


async def report(publisher: Publisher, outcome: Outcome, body: bytes, traceparent: str | None) -> None:
    """Publish an outcome (`body` is its JSON) and return when the broker has it.

    Raises:
        PublishError: it may not be out.
    """
    # The same step of the same task is the same event, however often it is reported.
    identity = f"{outcome.task_id}/{outcome.round}/{outcome.attempt}/{outcome.state}"
    envelope = Envelope(
        type=f"mail.{outcome.state}",
        source=MAILER,
        id=identity,
        time=outcome.at,
        subject=outcome.task_id,
        traceparent=traceparent,
    )
    lane = outcome.lane or Lane.NORMAL.value
    await publisher.publish(EXCHANGE, f"mail.{lane}.{outcome.state}", Message(body, envelope))
    metrics.OUTCOMES.labels(lane, outcome.state).inc()


def _origin(task: MailTask) -> dict[str, object]:
    """Return what the ledger needs for a task that it has not made itself."""
    if task.event_id is None:
        return {}
    return {"to": task.to, "template": task.template, "event_id": task.event_id}
