"""What the mailer does with a delivery. No AMQP verb is called here: returning settles it, and so does raising.

RelayAway, DatabaseAway, PublishError   something we stand on is away: back to the queue, nothing counted
Defer                                   a limit, or an attachment that is not there yet: the ladder, nothing counted
Retry                                   this attempt failed, another may not: the retry ladder
Reject                                  it can never be understood: dead letter
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from bellhop import faults
from bellhop.amqp.errors import Defer, NotNow, PublishError, Reject, Retry
from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.contracts.base import Contract, derived_id, new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import CancelTask, MailTask
from bellhop.contracts.outcomes import Outcome, State
from bellhop.sql.database import DatabaseAway
from services.mailer import metrics, outcomes
from services.mailer.attachments import AttachmentsAway
from services.mailer.compose import Composer, message_id, to_bytes
from services.mailer.limits import TURN, Limits
from services.mailer.message import Mail, from_header
from services.mailer.relays import Relay, Relays
from services.mailer.rendering import RenderingError, Templates
from services.mailer.replies import Cause, Kind, Verdict
from services.mailer.settings import MailerSettings
from services.mailer.store import Claim, Inbox, Kept, Key, Result, Verb
from services.mailer.transport import Outgoing, RelayAway

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
    composer: Composer
    inbox: Inbox
    limits: Limits
    relays: Relays
    publisher: Publisher
    policy: RetryPolicy = DEFAULT
    in_hand: set[Key] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    room_to_hold: int = 40
    """How many mails may wait in hand for their turn by a limit; the others wait on the ladder."""
    from_line: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.from_line = from_header(self.settings.mail_from_name, self.settings.mail_from)

    def check_lease(self) -> None:
        """Raise DatabaseAway if other replicas may take us for dead, and send what we hold."""
        if not self.inbox.fresh:
            raise DatabaseAway("our heartbeat is late, so another replica may take over what we hold")


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
        attempt = await _attempt(mailer, delivery, task, key)
        while attempt.claim.verb is Verb.HELD:
            await waiting.pause(NotNow("another replica is sending this mail"))
            attempt = await _attempt(mailer, delivery, task, key)
        if attempt.verdict is not None:
            await _conclude(mailer, delivery, task, attempt, attempt.verdict)
        else:
            await _report_again(mailer, delivery, task, attempt.claim)
    finally:
        mailer.in_hand.discard(key)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What the inbox said, and what became of the mail if it was sent."""

    claim: Claim
    verdict: Verdict | None = None
    relay: Relay | None = None
    """Which one was tried last."""


async def _attempt(mailer: Mailer, delivery: Delivery, task: MailTask, key: Key) -> _Attempt:
    """Claim the task and, where the claim allows it, send. Without a verdict nothing was sent."""
    try:
        mail = await mailer.composer.compose(task)
        outgoing = Outgoing(
            mailer.settings.mail_from, mail.to, await to_bytes(mail, mailer.from_line), mail, mailer.check_lease
        )
    except (RenderingError, ValueError) as error:
        claim = await _claim(mailer, key, delivery.attempt)
        verdict = Verdict(Kind.PERMANENT, str(error), cause=Cause.CONTENT)
        return _Attempt(claim, verdict if claim.verb is Verb.SEND else None)
    except AttachmentsAway as error:
        raise Defer(str(error), after=ATTACHMENT_SECONDS) from error
    # Claim nothing while nothing can go out: what is claimed when we crash counts as sent, perhaps.
    relays = await mailer.relays.usable()
    await _wait_for_turn(mailer, delivery, task, mail, relays[0])
    # Before the turn on a connection, not within it: a commit takes longer than a mail on a near relay.
    claim = await _claim(mailer, key, delivery.attempt)
    if claim.verb is not Verb.SEND:
        return _Attempt(claim)
    faults.point("mail.before_connect")
    began = time.perf_counter()
    try:
        relay, verdict = await _send(mailer, task, outgoing, relays)
    except (RelayAway, DatabaseAway):
        # Nothing came of the claim: give it back.
        result = Result(key, Kept.WAITING, delivery.attempt - 1, claim.uncertain, claim.outcome)
        await _patiently(mailer, lambda: mailer.inbox.record(result))
        raise
    metrics.SECONDS.observe(time.perf_counter() - began)
    return _Attempt(claim, verdict, relay)


ATTACHMENT_SECONDS = 30.0
"""How long a mail waits whose attachment cannot be fetched."""


async def _wait_for_turn(mailer: Mailer, delivery: Delivery, task: MailTask, mail: Mail, relay: Relay) -> None:
    """Return when no limit stands against sending; what would take long waits on the ladder instead."""
    limits = mailer.limits
    names = limits.apply_to(_domain(mail.to), task.owner, relay.settings.limit)
    if not names:
        return
    turn = await _patiently(mailer, lambda: limits.turn(names, task.lane, delivery.attempt, delivery.headers.get(TURN)))
    if turn.wait <= 0:
        return
    if limits.hold(turn.wait, mailer.room_to_hold):
        await limits.held(turn.wait)
        return
    metrics.DEFERRED.labels(turn.limit.partition(":")[0]).inc()
    raise Defer(f"its turn by the limit {turn.limit} is later", after=turn.wait, headers={TURN: turn.header})


async def _send(mailer: Mailer, task: MailTask, outgoing: Outgoing, relays: list[Relay]) -> tuple[Relay, Verdict]:
    """Send by the first relay that takes the mail, or refuses it for its own fault.

    Raises:
        RelayAway: none did; the mail is certainly not out.
    """
    answer: tuple[Relay, Verdict] | None = None
    away = RelayAway("no relay works")
    while answer is None and relays:
        for relay in relays:
            if relay is not relays[0]:
                metrics.FAILOVERS.labels(relay.settings.name).inc()
            try:
                verdict = await mailer.relays.send(relay, outgoing, task.lane)
            except RelayAway as error:
                away = error
                continue
            answer = relay, verdict
            if not verdict.elsewhere:
                return answer
        relays = [relay for relay in relays if relay.breaker.closed]
    if answer is None:
        raise away
    return answer


async def _claim(mailer: Mailer, key: Key, attempt: int) -> Claim:
    async def claim() -> Claim:
        mailer.check_lease()
        return await mailer.inbox.claim(key, attempt)

    return await _patiently(mailer, claim)


def _domain(address: str) -> str:
    return address.rpartition("@")[2].lower()


async def _conclude(mailer: Mailer, delivery: Delivery, task: MailTask, made: _Attempt, verdict: Verdict) -> None:
    """Record an attempt, report it, and let it be tried again where that makes sense."""
    faults.point("mail.after_reply")
    attempt, claim = delivery.attempt, made.claim
    metrics.REPLIES.labels(verdict.code or "none", verdict.cause).inc()
    if verdict.uncertain:
        metrics.UNCERTAIN.labels("no reply to the final dot").inc()
    if claim.uncertain and claim.outcome is None:
        metrics.UNCERTAIN.labels("crash during an attempt").inc()
    more: dict[str, object] = {"uncertain": verdict.uncertain or claim.uncertain}
    if made.relay is not None:
        more["relay"] = made.relay.where
    rung = None
    if verdict.kind is Kind.SENT:
        state = State.SENT
        more["message_id"] = message_id(task.task_id, mailer.settings.domain)
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
    faults.point("mail.recorded")
    await _report(mailer, delivery, outcome, body.encode())
    faults.point("mail.reported")
    if made.relay is not None:
        with suppress(DatabaseAway):  # what was not learnt from this mail will be from another
            await mailer.limits.heard(verdict, _domain(task.to), made.relay.settings.limit)
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

REACTIONS_AT_ONCE = 200

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
        for recipient, its_data in recipients:
            try:
                tasks.append(_reaction(delivery.envelope, template.name, recipient, its_data))
            except ValidationError as error:
                wrong.append(f"{template.name} for {recipient[:100]!r}: {_first_problem(error)}")
    for start in range(0, len(tasks), REACTIONS_AT_ONCE):
        some = tasks[start : start + REACTIONS_AT_ONCE]
        await asyncio.gather(*(_hand_on(mailer, delivery, task) for task in some))
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
