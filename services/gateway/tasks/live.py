"""Show outcomes to browsers: events of type `<kind>.<state>` on the notifier's stream."""

from bellhop.amqp.errors import Hold, PublishError, Refused, Unconfirmed, Unroutable
from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.outcomes import Outcome
from bellhop.observe.logs import get_logger
from services.gateway import metrics
from services.gateway.outbox.routing import NOTIFICATIONS
from services.gateway.tasks.ended import is_shown

log = get_logger(__name__)


class LiveOutcomes:
    """Publishes outcomes to the stream, once the ledger has them: a browser and a GET never disagree."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._failure = False

    async def show(self, delivery: Delivery, outcome: Outcome) -> None:
        """Publish `outcome` under its own identity, so that a repetition is shown once.

        A stream that is missing or full is counted, and logged once: it must not delay the ledger.

        Raises:
            Hold: there is no broker; the outcome will be delivered again.
        """
        if not is_shown(outcome.owner, outcome.lane):
            return
        # The document is the whole text of the mail, which no reader watches.
        body = delivery.body
        if outcome.document is not None:
            body = outcome.model_dump_json(exclude={"document"}, exclude_none=True).encode()
        message = Message(body, delivery.envelope)
        try:
            await self._publisher.publish(NOTIFICATIONS, delivery.envelope.type, message)
        except (Unroutable, Refused, Unconfirmed) as error:
            if isinstance(error, Unconfirmed) and not self._publisher.connected:
                raise Hold(str(error)) from error
            self._note_not_shown(error)
        except PublishError as error:
            raise Hold(str(error)) from error
        else:
            if self._failure:
                log.info("outcomes are shown live again")
            self._failure = False

    def _note_not_shown(self, error: PublishError) -> None:
        metrics.NOT_SHOWN.inc()
        if not self._failure:
            log.warning("outcomes are applied, but not shown live", reason=str(error))
        self._failure = True
