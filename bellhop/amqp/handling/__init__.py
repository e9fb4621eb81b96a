"""Middleware around a handler. Each step is one file with one function that wraps a handler.

From the outside in:

    hold          Hold: keep the delivery unacked and run it again, up to 15 minutes; then nack, back to the queue
    unavailable   a dependency is unavailable (`bellhop.errors.Unavailable`): raise Hold
    dead_letter   Reject, or not decodable: publish to the dead letters with the reason
    retry         Retry, Defer, any other error: publish to a retry queue; raise Reject when the attempts are spent
    the handler, which `spans` gives a span for each delivery or batch

When the outermost handler returns, the delivery is acked. Moving a message is a confirmed publish followed by an ack: a
crash between the two duplicates the message, which the inbox recognises, and never loses it.
"""

from bellhop.amqp.handling.dead_letter import dead_letter_rejected
from bellhop.amqp.handling.retry import retry_failed
from bellhop.amqp.handling.unavailable import hold_while_unavailable
from bellhop.amqp.message import Handler
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import RetryPolicy


def settled(handler: Handler, publisher: Publisher, policy: RetryPolicy) -> Handler:
    """Return `handler` within all steps but `hold`: when it returns, the delivery can be acked.

    Raises:
        Hold: the delivery has to be kept or handed back; nothing was published for it.
    """
    handler = retry_failed(handler, publisher, policy)
    handler = dead_letter_rejected(handler, publisher)
    return hold_while_unavailable(handler)
