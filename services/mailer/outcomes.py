"""The outcomes of mails: outcomes with an SMTP reply, a recipient and a template."""

from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import MailTask, mail_document
from bellhop.contracts.outcomes import Outcome, State
from services.mailer.relays.replies import Cause, Kind, Verdict


def of_attempt(task: MailTask, attempt: int, state: State, verdict: Verdict, **more: object) -> Outcome:
    """Return the outcome of one attempt; `more` are further fields of `Outcome`."""
    fields: dict[str, object] = {
        "attempt": attempt,
        "state": state,
        "code": verdict.code,
        "enhanced": verdict.enhanced,
        "reply": verdict.sentence,
        "uncertain": verdict.uncertain,
    }
    if verdict.kind is not Kind.SENT and verdict.cause is not Cause.OTHER:
        fields["cause"] = verdict.cause.value
    return _outcome(task, **(fields | more))


def queued(task: MailTask, event: Envelope) -> Outcome:
    """Return the first outcome of a task that was created for `event`: it creates the task's row in the ledger."""
    return _outcome(
        task,
        attempt=0,
        state=State.QUEUED,
        document=mail_document(task),
        event_source=event.source,
        event_type=event.type,
        event_time=event.time,
    )


def suppressed(task: MailTask, reason: str) -> Outcome:
    """Return the outcome of a task whose address gets no mail."""
    return _outcome(task, attempt=0, state=State.SUPPRESSED, reply=f"The address is suppressed: {reason}")


def _outcome(task: MailTask, **fields: object) -> Outcome:
    common = {
        "task_id": task.task_id,
        "round": task.round,
        "at": now(),
        "owner": task.owner,
        "lane": task.lane.value,
    }
    return Outcome.model_validate(common | _origin(task) | fields)


def _origin(task: MailTask) -> dict[str, object]:
    """Return the fields that the ledger needs for a task that the gateway did not create."""
    if task.event_id is None:
        return {}
    return {"to": task.to, "template": task.template, "event_id": task.event_id}
