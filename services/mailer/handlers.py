"""The handlers of the mailer. The result of a handler settles its delivery: it returns, or raises one of these.

RelayUnavailable, DatabaseUnavailable, PublishError   a dependency is unavailable: hold, no attempt is counted
Defer    a rate limit, or an attachment that cannot be fetched: to a retry queue, no attempt is counted
Retry    the attempt failed: to a retry queue
Reject   the message can never be handled: dead-letter
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from bellhop import faults
from bellhop.amqp.errors import Defer, Hold, PublishError, Retry
from bellhop.amqp.message import Delivery
from bellhop.contracts.base import now
from bellhop.contracts.mail import MailTask
from bellhop.contracts.outcomes import State
from bellhop.sql.database import DatabaseUnavailable
from bellhop.tasks import reservations
from bellhop.tasks.adaptive_rate import Answer
from bellhop.tasks.breaker import THRESHOLD
from bellhop.tasks.claims import Claim, ClaimDecision, InboxState, Key, Result
from bellhop.tasks.decoding import decode
from bellhop.tasks.outcomes import due_in
from bellhop.tasks.waiting import until_available
from bellhop.web.peer import PeerUnavailable
from services.mailer import metrics, outcomes
from services.mailer.compose import message_id, to_bytes
from services.mailer.parts import Mailer
from services.mailer.relays.pool import Relay
from services.mailer.relays.replies import Cause, Kind, Verdict
from services.mailer.relays.transport import Outgoing, RelayUnavailable
from services.mailer.rendering import RenderingError

# mail.urgent, mail.normal, mail.bulk


async def send_mail(mailer: Mailer, delivery: Delivery) -> None:
    """Send one mail, unless it is sent, is being sent by another replica or is cancelled; report the outcome."""
    task = decode(MailTask, delivery)
    key = (task.task_id, task.round)
    async with mailer.worker.alone(key) as deadline:
        attempt = await _attempt(mailer, delivery, task, key)
        while attempt.claim.decision is ClaimDecision.IN_PROGRESS:
            await deadline.pause(Hold("another replica is sending this mail"))
            attempt = await _attempt(mailer, delivery, task, key)
        if attempt.verdict is not None:
            await _conclude_or_release(mailer, delivery, task, attempt, attempt.verdict)
        else:
            await mailer.worker.report_again(delivery, key, attempt.claim)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The answer of the inbox, and the result of the attempt if one was made."""

    claim: Claim
    verdict: Verdict | None = None
    relay: Relay | None = None
    """The relay that was tried last."""
    domain: str = ""
    """The recipient's domain, in its encoding for SMTP."""


async def _attempt(mailer: Mailer, delivery: Delivery, task: MailTask, key: Key) -> _Attempt:
    """Claim the task and send its mail if the claim allows it. Without a verdict, nothing was sent."""
    try:
        mail = await mailer.composer.compose(task)
        outgoing = Outgoing(
            mailer.settings.mail_from, mail.to, await to_bytes(mail, mailer.from_line), mail, mailer.worker.check_lease
        )
    except (RenderingError, ValueError) as error:
        claim = await mailer.worker.claim(key, delivery.attempt)
        verdict = Verdict(Kind.PERMANENT, str(error), cause=Cause.CONTENT)
        return _Attempt(claim, verdict if claim.decision is ClaimDecision.RUN else None)
    except PeerUnavailable as error:
        raise Defer(str(error), after=ATTACHMENT_SECONDS) from error
    # Claim nothing while no relay is usable: after a crash each claimed task counts as possibly sent (`uncertain`).
    relays = await mailer.relays.usable()
    await _wait_for_slot(mailer, delivery, task, outgoing.domain, relays[0])
    # Claim before a connection is taken: a commit may take longer than sending a mail, and would block the connection.
    claim = await mailer.worker.claim(key, delivery.attempt)
    if claim.decision is not ClaimDecision.RUN:
        return _Attempt(claim)
    faults.point("mail.before_connect")
    began = time.perf_counter()
    try:
        relay, verdict = await _send(mailer, task, outgoing, relays)
    except (RelayUnavailable, DatabaseUnavailable):  # nothing was sent
        await mailer.worker.give_back(key, delivery.attempt, claim, uncertain=claim.uncertain)
        raise
    except Exception:  # a defect: it is unknown whether the mail was sent
        await mailer.worker.give_back(key, delivery.attempt, claim, uncertain=True)
        raise
    metrics.SECONDS.observe(time.perf_counter() - began)
    return _Attempt(claim, verdict, relay, outgoing.domain)


ATTACHMENT_SECONDS = 30.0
"""The delay of a mail whose attachment cannot be fetched."""


async def _wait_for_slot(mailer: Mailer, delivery: Delivery, task: MailTask, domain: str, relay: Relay) -> None:
    """Return when the rate limits allow to send.

    Raises:
        Defer: the mail waits for its slot in a retry queue.
    """
    rate = mailer.send_rate
    limits = rate.limits_of(domain, task.owner, relay.settings.limit)
    if not limits:
        return
    header = delivery.headers.get(reservations.HEADER)
    slot = await until_available(mailer.stopping, lambda: rate.reserve(limits, task.lane, delivery.attempt, header))
    if slot.wait <= 0:
        return
    if rate.fits_in_memory(slot.wait, mailer.max_waiting_in_memory):
        await rate.wait_in_memory(slot.wait)
        return
    metrics.DEFERRED.labels(slot.limit.partition(":")[0]).inc()
    headers = {reservations.HEADER: slot.header}
    raise Defer(f"the limit {slot.limit} allows this mail later", after=slot.wait, headers=headers)


async def _send(mailer: Mailer, task: MailTask, outgoing: Outgoing, relays: list[Relay]) -> tuple[Relay, Verdict]:
    """Return the first relay that accepts the mail, or refuses it for a reason in the mail, and its verdict.

    Raises:
        RelayUnavailable: no relay did; the mail was certainly not sent.
    """
    answer: tuple[Relay, Verdict] | None = None
    unavailable = RelayUnavailable("no relay works")
    for _ in range(THRESHOLD):  # THRESHOLD failures open a breaker; then `usable` waits for it
        for relay in relays:
            if relay is not relays[0]:
                metrics.FAILOVERS.labels(relay.settings.name).inc()
            try:
                verdict = await mailer.relays.send(relay, outgoing, task.lane)
            except RelayUnavailable as error:
                unavailable = error
                continue
            answer = relay, verdict
            if not verdict.try_next_relay:
                return answer
        relays = [relay for relay in relays if relay.breaker.closed]
        if answer is not None or mailer.stopping.is_set():
            break
    if answer is None:
        raise unavailable
    return answer


async def _conclude_or_release(
    mailer: Mailer, delivery: Delivery, task: MailTask, sent: _Attempt, verdict: Verdict
) -> None:
    """Conclude an attempt; if a defect prevents that, release the claim."""
    try:
        await _conclude(mailer, delivery, task, sent, verdict)
    except (Defer, Retry, RelayUnavailable, DatabaseUnavailable, PublishError):
        raise
    except Exception:
        uncertain = verdict.kind is Kind.SENT or verdict.uncertain or sent.claim.uncertain
        key = (task.task_id, task.round)
        await mailer.worker.give_back(key, delivery.attempt, sent.claim, uncertain=uncertain)
        raise


async def _conclude(mailer: Mailer, delivery: Delivery, task: MailTask, sent: _Attempt, verdict: Verdict) -> None:
    """Record the result of an attempt, report it, and raise what causes another attempt if there is to be one."""
    faults.point("mail.after_reply")
    attempt, claim = delivery.attempt, sent.claim
    metrics.REPLIES.labels(verdict.code or "none", verdict.cause).inc()
    if verdict.uncertain:
        metrics.UNCERTAIN.labels(metrics.NO_REPLY).inc()
    if claim.uncertain and claim.outcome is None:
        metrics.UNCERTAIN.labels(metrics.CRASH).inc()
    more: dict[str, object] = {"uncertain": verdict.uncertain or claim.uncertain}
    if sent.relay is not None:
        more["relay"] = sent.relay.address
    wait: float | None = None
    deferral = _deferral(delivery, verdict)
    if verdict.kind is Kind.SENT:
        more["message_id"] = message_id(task.task_id, mailer.settings.domain)
    elif deferral is not None:
        wait = deferral.after
    elif verdict.kind is Kind.TRANSIENT and (verdict.attempts is None or attempt < verdict.attempts):
        retry_queue = mailer.policy.retry_queue(attempt, verdict.after)
        wait = None if retry_queue is None else retry_queue.seconds
    again = wait is not None
    state = State.SENT if verdict.kind is Kind.SENT else State.RETRYING if again else State.FAILED
    if wait is not None:
        more |= due_in(wait)
    outcome = outcomes.of_attempt(task, attempt, state, verdict, **more)
    body = outcome.model_dump_json(exclude_none=True)
    result = Result(
        (task.task_id, task.round),
        InboxState.RETRY_PENDING if again else InboxState.FINISHED,
        attempt,
        outcome.uncertain,
        body,
    )
    if deferral is not None:  # this attempt is not counted
        result = replace(result, attempt=attempt - 1, outcome=claim.outcome)
    stored = await mailer.worker.record(result)
    if again and stored is InboxState.CANCELLED:  # the cancel arrived during the attempt
        again = False
        outcome = outcome.model_copy(update={"state": State.CANCELLED, "retry_at": None})
        body = outcome.model_dump_json(exclude_none=True)
    faults.point("mail.recorded")
    await mailer.worker.report(delivery, outcome, body.encode())
    faults.point("mail.reported")
    if sent.relay is not None:
        with suppress(DatabaseUnavailable):  # optional: the reply to another mail will adapt the rate
            await mailer.send_rate.observe(
                answer_of(verdict), sent.domain, sent.relay.settings.limit,
                after=verdict.after, about_relay=verdict.about_relay,
            )  # fmt: skip
    if again:
        raise deferral or Retry(verdict.sentence, after=verdict.after)


_ANSWERS = {Cause.THROTTLED: Answer.THROTTLED, Cause.POLICY: Answer.REFUSED}


def answer_of(verdict: Verdict) -> Answer:
    """Return what a reply means for the send rate."""
    return Answer.ACCEPTED if verdict.kind is Kind.SENT else _ANSWERS.get(verdict.cause, Answer.OTHER)


UNCHARGED_TIME = timedelta(days=4)
"""A mail is deferred for so long without counting attempts. RFC 5321, 4.5.4.1 requires four to five days."""
DEFERRALS = "bellhop-deferrals"
"""AMQP header: how often a mail was deferred without being charged."""
DEFERRAL_SECONDS = (5.0, 30.0, 120.0, 600.0)


def _deferral(delivery: Delivery, verdict: Verdict) -> Defer | None:
    """Return the deferral of a mail after a reply about our sender, our rate or the relay; None: the attempt counts."""
    if verdict.charged or now() - delivery.envelope.time > UNCHARGED_TIME:
        return None
    count = _deferrals(delivery)
    after = max(verdict.after or 0.0, DEFERRAL_SECONDS[min(count, len(DEFERRAL_SECONDS) - 1)])
    return Defer(verdict.sentence, after=after, headers={DEFERRALS: count + 1})


def _deferrals(delivery: Delivery) -> int:
    count = delivery.headers.get(DEFERRALS, 0)
    return count if isinstance(count, int) and count > 0 else 0


# mail.cancel


async def cancel_mail(mailer: Mailer, delivery: Delivery) -> None:
    """Cancel a mail that is not sent yet; see `Worker.cancel`."""
    await mailer.worker.cancel(delivery)
