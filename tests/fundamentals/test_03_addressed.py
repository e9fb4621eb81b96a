"""Addressed messages: the routing key says what it is, a binding says who wants it."""

import pytest

from bellhop.amqp.errors import Unroutable
from tests.fundamentals.conftest import Tutorial
from tests.support import wait_until


async def test_a_direct_exchange_matches_the_whole_key(tutorial: Tutorial) -> None:
    """On `work` every queue is bound by its own name: a key is an address."""
    await tutorial.publish("work", "mail.urgent", "hurry")

    assert await tutorial.vhost.depth("mail.urgent") == 1
    assert await tutorial.vhost.depth("mail.normal") == 0


async def test_an_address_that_does_not_exist_is_told(tutorial: Tutorial) -> None:
    """Every message is mandatory: what cannot be routed comes back as an error instead of vanishing."""
    with pytest.raises(Unroutable):
        await tutorial.publish("work", "mail.nowhere", "lost?")


async def test_a_topic_exchange_matches_patterns(tutorial: Tutorial) -> None:
    """On `events` a service binds the types it reacts to; `*` is one word, `#` any number."""
    channel = await tutorial.vhost.channel()
    orders = await channel.declare_queue("all-orders", durable=True)
    await orders.bind("events", "order.*")

    await tutorial.publish("events", "order.placed", "a")
    await tutorial.publish("events", "order.paid", "b")
    with pytest.raises(Unroutable):
        await tutorial.publish("events", "invoice.paid", "c")

    assert [(await orders.get(timeout=5)).headers["cloudEvents:id"] for _ in range(2)] == ["a", "b"]


async def test_an_event_that_nobody_wants_comes_back(tutorial: Tutorial) -> None:
    """`events` has no alternate exchange: the publisher hears of it, and keeps the event in `unrouted` by itself."""
    with pytest.raises(Unroutable):
        await tutorial.publish("events", "meteor.seen", "m")
    await tutorial.publish("unrouted", "meteor.seen", "m")

    message = await wait_until(lambda: tutorial.vhost.get("unrouted"), 5, "the event is in `unrouted`")
    assert message.headers["cloudEvents:id"] == "m"
