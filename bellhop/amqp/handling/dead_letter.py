"""Dead letters: messages that cannot be handled, kept with the reason until an operator replays or deletes them."""

from bellhop.amqp.errors import Reject
from bellhop.amqp.headers import DEAD_LETTERED_AT, ERROR, QUEUE, REASON, forward
from bellhop.amqp.message import Delivery, Handler
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import now
from bellhop.observe.logs import get_logger

EXCHANGE = "dead"
MAX_ERROR_CHARACTERS = 4000
"""Characters of the error that are kept: the last ones, because a traceback ends with the error."""

log = get_logger(__name__)


def dead_letter_rejected(handler: Handler, publisher: Publisher) -> Handler:
    """Return `handler`; what it rejects, and what could not be decoded, is published to the dead letters."""

    async def handle(delivery: Delivery) -> None:
        try:
            if delivery.error is not None:
                raise Reject(delivery.error)
            await handler(delivery)
        except Reject as error:
            await dead_letter(publisher, delivery, error)

    return handle


async def dead_letter(publisher: Publisher, delivery: Delivery, error: Reject) -> None:
    """Publish `delivery` to the dead letters, with the reason.

    Raises:
        PublishError: not confirmed; publishing again is safe, because the dead letter has the same identity.
    """
    log.warning(
        "dead letter", queue=delivery.queue, id=delivery.envelope.id, type=delivery.envelope.type,
        attempt=delivery.attempt, reason=error.reason, error=str(error),
    )  # fmt: skip
    headers = {
        REASON: error.reason,
        ERROR: (error.details or str(error))[-MAX_ERROR_CHARACTERS:],
        QUEUE: delivery.queue,
        DEAD_LETTERED_AT: now().isoformat(),
    }
    await publisher.publish(EXCHANGE, delivery.queue, forward(delivery, headers=headers))
