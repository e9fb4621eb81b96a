"""Announce to the gateway which event types the templates name: it publishes a copy of these events for the mailer."""

from collections.abc import Sequence

from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import MAILER
from bellhop.contracts.reactions import QUEUE, TYPE, MailerStarted

REPEAT_SECONDS = 300.0
"""Must be less than the hour after which the gateway deletes a type that no mailer announces."""


async def announce(publisher: Publisher, reacts_to: Sequence[str]) -> float | None:
    """Publish the event types once; return the delay of the next try if the broker is unavailable. Idempotent.

    Raises:
        PublishError: the message was not confirmed.
    """
    if publisher.failure is not None:
        return 0.5
    body = MailerStarted(reacts_to=list(reacts_to)).model_dump_json().encode()
    await publisher.publish("work", QUEUE, Message(body, Envelope(type=TYPE, source=MAILER)))
    return None
