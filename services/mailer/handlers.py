"""What the mailer does with a delivery. No AMQP verb is called here: returning settles it, and so does raising.

RelayAway, DatabaseAway, PublishError   something we stand on is away: back to the queue, nothing counted
Retry                                   this attempt failed, another may not: the retry ladder
Reject                                  it can never be understood: dead letter
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bellhop.amqp.errors import NotNow, PublishError, Reject, Retry
from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.contracts.base import Contract, derived_id, new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import Address, CancelTask, MailTask
from bellhop.contracts.outcomes import Outcome, State
from bellhop.sql.database import DatabaseAway
from services.mailer import metrics, outcomes
from services.mailer.message import Mail, build, from_header
from services.mailer.rendering import RenderingError, Templates
from services.mailer.replies import Kind, Verdict
from services.mailer.settings import MailerSettings
from services.mailer.smtp import Relay, RelayAway
from services.mailer.store import Claim, Inbox, Kept, Key, Result, Verb

PATIENCE = 900.0
"""How long a delivery waits, in seconds, for a database or broker that is away. Under RabbitMQ's consumer timeout of 30
minutes; not shorter, because a mail that went out unrecorded goes out again, and because each return to the queue
counts against the message on RabbitMQ before 4.0."""

C = TypeVar("C", bound=Contract)
R = TypeVar("R")


@dataclass(slots=True)
class Mailer:
    """What the handlers work with."""

    settings: MailerSettings
    templates: Templates
    inbox: Inbox
    relay: Relay
    publisher: Publisher
    policy: RetryPolicy = DEFAULT
    in_hand: set[Key] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    from_line: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.from_line = from_header(self.settings.mail_from_name, self.settings.mail_from)


def guarded(
    handler: Callable[[Mailer, Delivery], Awaitable[None]], mailer: Mailer
) -> Callable[[Delivery], Awaitable[None]]:
    """Return `handler` as a consumer wants it: what is away is `NotNow`."""

    async def handle(delivery: Delivery) -> None:
        try:
            await handler(mailer, delivery)
        except (RelayAway, DatabaseAway, PublishError) as error:
            raise NotNow(str(error)) from error

    return handle


# mail.urgent, mail.normal, mail.bulk


async def send_mail(mailer: Mailer, delivery: Delivery) -> None:
    """Send one mail, unless it was sent, is being sent or was cancelled; report what became of it."""
    task = _decode(MailTask, delivery)
    key = (task.task_id, task.round)
    waiting = _Patience(mailer)
    while key in mailer.in_hand:  # a second copy of the message, or a redelivery after a lost connection
        await waiting.pause(NotNow("another copy of this task is in hand"))
    mailer.in_hand.add(key)
    try:
        claim, verdict = await _attempt(mailer, delivery, task, key)
        while claim.verb is Verb.HELD:
            await waiting.pause(NotNow("another replica is sending this mail"))
            claim, verdict = await _attempt(mailer, delivery, task, key)
        if verdict is not None:
            await _conclude(mailer, delivery, task, claim, verdict)
        else:
            await _report_again(mailer, delivery, task, claim)
    finally:
        mailer.in_hand.discard(key)


async def _attempt(mailer: Mailer, delivery: Delivery, task: MailTask, key: Key) -> tuple[Claim, Verdict | None]:
    """Claim the task and, where the claim allows it, send. Without a verdict nothing was sent."""
    try:
        message = _compose(mailer, task)
    except (RenderingError, ValueError) as error:
        claim = await _claim(mailer, key, delivery.attempt)
        return claim, Verdict(Kind.PERMANENT, str(error)) if claim.verb is Verb.SEND else None
    if mailer.relay.trouble is not None:
        # Claim nothing while nothing can go out: what is claimed when we crash counts as sent, perhaps.
        async with mailer.relay.slot(task.lane):
            pass
    # Before the turn on a connection, not within it: a commit takes longer than a mail on a near relay.
    claim = await _claim(mailer, key, delivery.attempt)
    if claim.verb is not Verb.SEND:
        return claim, None
    try:
        async with mailer.relay.slot(task.lane) as slot:
            if not mailer.inbox.fresh:
                raise DatabaseAway(_LATE)
            began = time.perf_counter()
            verdict = await slot.send(mailer.settings.mail_from, task.to, message)
    except (RelayAway, DatabaseAway):
        # Nothing came of the claim: give it back.
        result = Result(key, Kept.WAITING, delivery.attempt - 1, claim.uncertain, claim.outcome)
        await _patiently(mailer, lambda: mailer.inbox.record(result))
        raise
    metrics.SECONDS.observe(time.perf_counter() - began)
    return claim, verdict


_LATE = "our heartbeat is late, so another replica may take over what we hold"


async def _claim(mailer: Mailer, key: Key, attempt: int) -> Claim:
    async def claim() -> Claim:
        if not mailer.inbox.fresh:
            raise DatabaseAway(_LATE)
        return await mailer.inbox.claim(key, attempt)

    return await _patiently(mailer, claim)


def _compose(mailer: Mailer, task: MailTask) -> bytes:
    subject, text, html = task.subject, task.text, task.html
    if task.template is not None:
        rendered = mailer.templates.get(task.template).render(task.data)
        subject, text, html = rendered.subject, rendered.text, rendered.html
    mail = Mail(
        to=task.to,
        subject=subject or "",
        message_id=_message_id(task.task_id, mailer.settings.domain),
        text=text,
        html=html,
        reply_to=task.reply_to,
        headers=task.headers,
    )
    return build(mail, mailer.from_line, formatdate())


def _message_id(task_id: str, domain: str) -> str:
    """Return the one Message-ID that all copies of a task's mail have."""
    plain = task_id.replace("-", "").isalnum() and task_id.isascii() and len(task_id) <= 64
    return f"<{task_id if plain else derived_id(task_id)}@{domain}>"


async def _conclude(mailer: Mailer, delivery: Delivery, task: MailTask, claim: Claim, verdict: Verdict) -> None:
    """Record an attempt, report it, and let it be tried again where that makes sense."""
    attempt = delivery.attempt
    metrics.REPLIES.labels(verdict.code or "none", verdict.cause).inc()
    if verdict.uncertain:
        metrics.UNCERTAIN.labels("no reply to the final dot").inc()
    if claim.uncertain and claim.outcome is None:
        metrics.UNCERTAIN.labels("crash during an attempt").inc()
    more: dict[str, object] = {"relay": mailer.relay.where, "uncertain": verdict.uncertain or claim.uncertain}
    rung = None
    if verdict.kind is Kind.SENT:
        state = State.SENT
        more["message_id"] = _message_id(task.task_id, mailer.settings.domain)
    else:
        state = State.FAILED
        if verdict.kind is Kind.TRANSIENT and (verdict.attempts is None or attempt < verdict.attempts):
            rung = mailer.policy.rung(attempt, verdict.after)
    if rung is not None:
        state = State.RETRYING
        more |= outcomes.due_in(rung.seconds)
    outcome = outcomes.of_attempt(task, attempt, state, verdict, **more)
    body = outcome.model_dump_json(exclude_none=True)
    kept = Kept.WAITING if rung is not None else Kept.DONE
    result = Result((task.task_id, task.round), kept, attempt, outcome.uncertain, body)
    await _patiently(mailer, lambda: mailer.inbox.record(result))
    await _report(mailer, delivery, outcome, body.encode())
    if rung is not None:
        raise Retry(verdict.sentence, after=verdict.after)


async def _report_again(mailer: Mailer, delivery: Delivery, task: MailTask, claim: Claim) -> None:
    """Deal with a task that is not ours to send."""
    metrics.AGAIN.inc()
    if claim.outcome is None:
        mark = CancelTask(task_id=task.task_id, round=task.round)
        outcome = outcomes.cancelled(mark, claim.attempt, uncertain=claim.uncertain)
    else:
        outcome = Outcome.model_validate_json(claim.outcome)
    await _report(mailer, delivery, outcome)
    if claim.verb is Verb.MADE:
        after = (outcome.retry_at - outcome.at).total_seconds() if outcome.retry_at else None
        raise Retry(outcome.reply or "this attempt was made already", after=after)


# mail.cancel


async def cancel_mail(mailer: Mailer, delivery: Delivery) -> None:
    """Never begin a task, and do not try again what waits for its next attempt. What is on its way goes on."""
    task = _decode(CancelTask, delivery)
    claim = await mailer.inbox.cancel((task.task_id, task.round))
    if claim.verb is not Verb.OVER:
        return
    outcome = outcomes.cancelled(task, claim.attempt, uncertain=claim.uncertain)
    await _report(mailer, delivery, outcome)


# mailer.reactions

_ADDRESS: TypeAdapter[str] = TypeAdapter(Address)
_OBJECT: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


async def react(mailer: Mailer, delivery: Delivery) -> None:
    """Make the mails that an event sets off. The same event, template and recipient are the same task for ever."""
    templates = mailer.templates.reacting_to(delivery.envelope.type)
    try:
        data = _OBJECT.validate_json(delivery.body)
    except ValidationError:
        raise Reject("a template can only take data that is a JSON object") from None
    tasks, wrong = [], []
    for template in templates:
        try:
            recipients = template.recipients(data)
        except RenderingError as error:
            wrong.append(str(error))
            continue
        for recipient in recipients:
            try:
                tasks.append(_reaction(delivery.envelope, template.name, recipient, data))
            except ValidationError as error:
                wrong.append(f"{template.name} for {recipient[:100]!r}: {_first_problem(error)}")
    await asyncio.gather(*(_hand_on(mailer, delivery, task) for task in tasks))
    if wrong:
        # The good ones are out, and a replay of the dead letter makes none of them twice.
        raise Reject("; ".join(wrong))


def _reaction(envelope: Envelope, template: str, recipient: str, data: dict[str, object]) -> MailTask:
    return MailTask.model_validate(
        {
            "task_id": derived_id(envelope.source, envelope.id, template, recipient),
            "owner": outcomes.EVENT_OWNER,
            "to": recipient,
            "template": template,
            "data": data,
            "event_id": envelope.id,
        }
    )


async def _hand_on(mailer: Mailer, delivery: Delivery, task: MailTask) -> None:
    body = task.model_dump_json(exclude_defaults=True).encode()
    envelope = Envelope(
        type="mail.requested",
        source=outcomes.SOURCE,
        id=new_id(),
        subject=task.task_id,
        traceparent=delivery.envelope.traceparent,
    )
    await _report(mailer, delivery, outcomes.queued(task))
    await _patiently(mailer, lambda: mailer.publisher.publish("work", task.lane.queue, Message(body, envelope)))


# What they share


async def _report(mailer: Mailer, delivery: Delivery, outcome: Outcome, body: bytes | None = None) -> None:
    body = body or outcome.model_dump_json(exclude_none=True).encode()
    traceparent = delivery.envelope.traceparent
    await _patiently(mailer, lambda: outcomes.report(mailer.publisher, outcome, body, traceparent))


async def _patiently(mailer: Mailer, action: Callable[[], Awaitable[R]]) -> R:
    """Return what `action` returns, as soon as the database or the broker that it needs is there."""
    patience: _Patience | None = None
    while True:
        try:
            return await action()
        except (DatabaseAway, PublishError) as error:
            patience = patience or _Patience(mailer)
            await patience.pause(error)


class _Patience:
    """Wait a second at a time, until it has been too long or this process is to end."""

    def __init__(self, mailer: Mailer) -> None:
        self._stopping = mailer.stopping
        self._deadline = time.monotonic() + PATIENCE

    async def pause(self, error: Exception) -> None:
        """Wait a little; raise `error` where waiting any longer makes no sense."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), 1.0)
        if self._stopping.is_set() or time.monotonic() > self._deadline:
            raise error


def _decode(contract: type[C], delivery: Delivery) -> C:
    try:
        return contract.model_validate_json(delivery.body)
    except ValidationError as error:
        raise Reject(f"not a {contract.__name__}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
