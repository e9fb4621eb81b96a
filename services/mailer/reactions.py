"""Make mails for events: queue mailer.reactions."""

import asyncio

from pydantic import TypeAdapter, ValidationError

from bellhop.amqp.errors import Reject
from bellhop.amqp.message import Delivery, Message
from bellhop.contracts.base import derived_id, new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import EVENT_OWNER, MAILER
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.mail import MailTask
from bellhop.tasks.decoding import first_problem
from bellhop.tasks.waiting import until_available
from services.mailer import outcomes
from services.mailer.parts import Mailer
from services.mailer.rendering import RenderingError

BATCH_SIZE = 200
"""Mails whose addresses are looked up, and which are published, together."""

_OBJECT: TypeAdapter[dict[str, object]] = TypeAdapter(dict[str, object])


async def react(mailer: Mailer, delivery: Delivery) -> None:
    """Publish the mail tasks of an event. Event, template and recipient determine the task's id, also in a replay."""
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
                wrong.append(f"{template.name} for {recipient[:100]!r}: {first_problem(error)}")
    for start in range(0, len(tasks), BATCH_SIZE):
        batch = tasks[start : start + BATCH_SIZE]
        suppressed = await _suppressed(mailer, batch)
        await asyncio.gather(*(_publish(mailer, delivery, task, suppressed.get(task.to)) for task in batch))
    if wrong:
        # The valid tasks are published, and a replay of the dead letter sends none of them again.
        raise Reject("; ".join(wrong))


def _reaction(envelope: Envelope, template: str, recipient: str, data: dict[str, object]) -> MailTask:
    return MailTask.model_validate(
        {
            "task_id": derived_id(*envelope.identity, template, recipient),
            "owner": envelope.owner or EVENT_OWNER,
            "to": recipient,
            "template": template,
            "data": data,
            "event_id": envelope.id,
        }
    )


async def _suppressed(mailer: Mailer, tasks: list[MailTask]) -> dict[str, str]:
    """Return the suppressed addresses with their reasons; wait for the answer, because a sent mail cannot be undone."""
    addresses = [task.to for task in tasks]
    return await until_available(mailer.stopping, lambda: mailer.suppressions.among(addresses))


async def _publish(mailer: Mailer, delivery: Delivery, task: MailTask, suppressed: str | None) -> None:
    """Report the task, and publish it unless its address is suppressed for the reason `suppressed`."""
    await mailer.worker.report(delivery, outcomes.queued(task, delivery.envelope))
    if suppressed is not None:
        await mailer.worker.report(delivery, outcomes.suppressed(task, suppressed))
        return
    body = task.model_dump_json(exclude_defaults=True).encode()
    envelope = Envelope(
        type=MAIL.requested,
        source=MAILER,
        id=new_id(),
        subject=task.task_id,
        traceparent=delivery.envelope.traceparent,
    )
    message = Message(body, envelope)
    await until_available(mailer.stopping, lambda: mailer.publisher.publish("work", MAIL.queues[task.lane], message))
