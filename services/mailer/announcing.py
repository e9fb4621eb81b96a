"""Tell the gateway which event types the templates name: it hands us the events of these types."""

from collections.abc import Sequence

from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import MAILER
from bellhop.contracts.reactions import QUEUE, TYPE, MailerStarted

REPEAT_SECONDS = 300.0
"""Well within the hour after which the gateway forgets a type that no mailer announces."""


async def announce(publisher: Publisher, reacts_to: Sequence[str]) -> float | None:
    """Publish it once; return in how many seconds to try again where there is no broker yet. Idempotent.

    Raises:
        PublishError: the gateway's queue did not take it.
    """
    if publisher.failure is not None:
        return 0.5
    body = MailerStarted(reacts_to=list(reacts_to)).model_dump_json().encode()
    await publisher.publish("work", QUEUE, Message(body, Envelope(type=TYPE, source=MAILER)))
    return None
