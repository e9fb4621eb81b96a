"""Push: the broker hands out. Pull: we take what lies there, when we like, as one batch."""

from bellhop.amqp.message import Delivery
from tests.fundamentals.conftest import Tutorial
from tests.support import wait_until


async def test_push_handles_each_message_as_it_comes(tutorial: Tutorial) -> None:
    """A consumer's handler runs once for each message, without anybody asking."""
    seen: list[str] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery.envelope.id)

    await tutorial.consume("mail.normal", handler)
    await tutorial.publish("work", "mail.normal", "now")

    await wait_until(lambda: seen == ["now"], 5, "it was handled")


async def test_pull_handles_many_messages_at_once(tutorial: Tutorial) -> None:
    """A puller's handler gets everything that lay ready: one commit and one ack for all of it."""
    batches: list[int] = []

    async def handler(deliveries: list[Delivery]) -> None:
        batches.append(len(deliveries))

    await tutorial.publish("work", "mail.normal", *map(str, range(100)))
    await tutorial.pull("mail.normal", handler, size=1000, interval=0.5)

    await wait_until(lambda: sum(batches) == 100, 10, "everything was handled")
    assert len(batches) <= 2
