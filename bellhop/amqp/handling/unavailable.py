"""A dependency that is unavailable is no fault of the message: no attempt is counted."""

from bellhop.amqp.errors import Hold
from bellhop.amqp.message import Delivery, Handler
from bellhop.errors import Unavailable


def hold_while_unavailable(handler: Handler) -> Handler:
    """Return `handler`, which raises `Hold` where it, or a step around it, raises `Unavailable`."""

    async def handle(delivery: Delivery) -> None:
        try:
            await handler(delivery)
        except Hold:
            raise
        except Unavailable as error:
            raise Hold(str(error)) from error
        except Exception as error:
            # A defect in a step around the handler. Handed back immediately, the message would return without end.
            raise Hold(f"the message could not be moved: {error!r}") from error

    return handle
