"""Point-to-point: a work queue gives each message to exactly one of its workers."""

import asyncio
from itertools import chain

from bellhop.amqp.message import Delivery, Handler
from tests.fundamentals.conftest import Tutorial
from tests.support import wait_until


async def test_each_message_goes_to_exactly_one_worker(tutorial: Tutorial) -> None:
    """Three workers share a queue; together they handle everything, and nothing twice."""
    handled: dict[str, list[str]] = {"a": [], "b": [], "c": []}

    def worker(name: str) -> Handler:
        async def handler(delivery: Delivery) -> None:
            handled[name].append(delivery.envelope.id)
            await asyncio.sleep(0)

        return handler

    for name in handled:
        await tutorial.consume("mail.normal", worker(name))
    ids = [str(number) for number in range(30)]
    await tutorial.publish("work", "mail.normal", *ids)

    await wait_until(lambda: sum(map(len, handled.values())) == 30, 10, "everything is handled")
    assert sorted(chain.from_iterable(handled.values()), key=int) == ids
    assert all(handled.values()), "the work was shared"


async def test_a_slow_worker_holds_up_only_what_it_was_given(tutorial: Tutorial) -> None:
    """With a prefetch of one a worker that hangs holds one message; a second worker does the rest."""
    hang = asyncio.Event()
    done: list[str] = []

    async def hanging(delivery: Delivery) -> None:
        await hang.wait()

    async def working(delivery: Delivery) -> None:
        done.append(delivery.envelope.id)

    await tutorial.consume("mail.normal", hanging, prefetch=1)
    await tutorial.publish("work", "mail.normal", "first")
    await tutorial.consume("mail.normal", working, prefetch=1)
    await tutorial.publish("work", "mail.normal", *map(str, range(10)))

    await wait_until(lambda: len(done) == 10, 10, "the other worker does the rest")
    hang.set()
