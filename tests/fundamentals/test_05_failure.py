"""When it does not work: never possible, not this time, or not now."""

from bellhop.amqp.errors import Reject, Retry
from bellhop.amqp.message import Delivery
from tests.fundamentals.conftest import Tutorial
from tests.support import wait_until


async def test_what_can_never_work_becomes_a_dead_letter(tutorial: Tutorial) -> None:
    """`Reject` puts the message aside with its reason; the queue goes on."""

    async def handler(delivery: Delivery) -> None:
        raise Reject("there is no such template")

    await tutorial.consume("mail.normal", handler)
    await tutorial.publish("work", "mail.normal", "poison")

    letter = await wait_until(lambda: tutorial.vhost.get("dead-letters"), 10, "the dead letter")
    assert letter.headers["bellhop-error"] == "there is no such template"


async def test_what_may_work_later_comes_back_later(tutorial: Tutorial) -> None:
    """`Retry` sends the message up a ladder of waiting queues; nobody holds it meanwhile."""
    attempts: list[int] = []

    async def handler(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise Retry("try again later")

    await tutorial.consume("mail.normal", handler)
    await tutorial.publish("work", "mail.normal", "stubborn")

    await wait_until(lambda: attempts == [1, 2], 15, "the second attempt, about five seconds later")
