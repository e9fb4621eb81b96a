"""Retries: a delivery that failed waits in a retry queue and comes back to its own queue."""

import traceback

from bellhop.amqp.errors import AttemptsSpent, Defer, Hold, Reject, Retry
from bellhop.amqp.headers import forward
from bellhop.amqp.message import Delivery, Handler
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import RetryPolicy, expiration_ms, retry_queue_for
from bellhop.errors import Unavailable
from bellhop.observe.logs import get_logger

log = get_logger(__name__)


def retry_failed(handler: Handler, publisher: Publisher, policy: RetryPolicy) -> Handler:
    """Return `handler`, whose failed deliveries are published to a retry queue.

    Raises:
        Reject: the handler rejected the delivery, or its attempts are spent.
        Hold, Unavailable: the handler could not work; no attempt is counted.
    """

    async def handle(delivery: Delivery) -> None:
        try:
            await handler(delivery)
        except (Hold, Reject, Unavailable):
            raise
        except Defer as signal:
            await _defer(publisher, delivery, signal)
        except Retry as signal:
            await _retry(publisher, policy, delivery, signal, signal.after)
        except Exception as error:
            log.exception("a handler failed", queue=delivery.queue, id=delivery.envelope.id, attempt=delivery.attempt)
            await _retry(publisher, policy, delivery, error)

    return handle


async def _retry(
    publisher: Publisher, policy: RetryPolicy, delivery: Delivery, error: Exception, after: float | None = None
) -> None:
    retry_queue = policy.retry_queue(delivery.attempt, after)
    if retry_queue is None:
        details = None if isinstance(error, Retry) else "".join(traceback.format_exception(error))
        raise AttemptsSpent(str(error), details=details) from error
    log.info(
        "retrying later", queue=delivery.queue, id=delivery.envelope.id, attempt=delivery.attempt,
        retry_queue=retry_queue.name, reason=str(error),
    )  # fmt: skip
    message = forward(delivery, attempt=delivery.attempt + 1, expiration_ms=expiration_ms(retry_queue))
    # The retry queue dead-letters to `work` with the routing key kept: the name of this queue.
    await publisher.publish(retry_queue.name, delivery.queue, message)


async def _defer(publisher: Publisher, delivery: Delivery, signal: Defer) -> None:
    retry_queue, milliseconds = retry_queue_for(signal.after)
    message = forward(delivery, headers=dict(signal.headers), expiration_ms=milliseconds)
    await publisher.publish(retry_queue.name, delivery.queue, message)
