"""Publish/subscribe: everybody who is bound gets a copy of their own."""

from contextlib import aclosing

from bellhop.amqp.streams import read_stream
from tests.fundamentals.conftest import Tutorial


async def test_every_queue_bound_to_a_fanout_gets_a_copy(tutorial: Tutorial) -> None:
    """Anybody may bind a queue of their own to `notifications`; the publisher does not know."""
    channel = await tutorial.vhost.channel()
    exchange = await channel.get_exchange("notifications", ensure=False)
    mine = [await channel.declare_queue(f"mine-{number}", durable=True) for number in range(2)]
    for queue in mine:
        await queue.bind(exchange)

    await tutorial.publish("notifications", "", "news")

    for queue in mine:
        message = await queue.get(timeout=5)
        assert message.headers["cloudEvents:id"] == "news"


async def test_a_stream_can_be_read_by_many_from_anywhere(tutorial: Tutorial) -> None:
    """`notifier.log` keeps what passed: each reader begins where it likes, and takes nothing away."""
    await tutorial.publish("notifications", "", "one", "two", "three")

    async def read(offset: int | str, count: int) -> list[str]:
        seen = []
        async with aclosing(
            read_stream(tutorial.vhost.amqp_url, "notifier.log", offset=offset, name="tutorial")
        ) as stream:
            async for delivery in stream:
                seen.append(delivery.envelope.id)
                if len(seen) == count:
                    break
        return seen

    assert await read("first", 3) == ["one", "two", "three"]
    assert await read("first", 3) == ["one", "two", "three"]
    assert await read(1, 2) == ["two", "three"]
