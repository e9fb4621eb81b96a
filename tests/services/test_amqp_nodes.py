"""Several nodes: whoever has the URLs of a cluster finds one that answers."""

import asyncio
from contextlib import aclosing

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.streams import read_stream
from bellhop.contracts.envelope import Envelope
from tests.support import wait_until
from tests.support.broker import Vhost

NOBODY = "amqp://nobody:x@127.0.0.1:1/none"


async def test_a_node_that_does_not_answer_is_passed_over(vhost: Vhost) -> None:
    """The second URL is used where the first one refuses connections."""
    connection = Connection(f"{NOBODY},{vhost.amqp_url}", "bellhop/tests/1/nodes")
    await connection.start()
    assert await connection.wait_open(10)
    await connection.close()


async def test_whoever_waits_is_told_all_nodes() -> None:
    """The sentence for people names every node that was asked."""
    connection = Connection(f"{NOBODY}, amqp://nobody:x@127.0.0.1:2/none", "bellhop/tests/1/nodes")
    assert connection.explanation == "no connection to RabbitMQ at 127.0.0.1:1 or 127.0.0.1:2, virtual host none"


async def test_a_lost_node_is_followed_by_the_next_and_the_first_again(vhost: Vhost) -> None:
    """Each loss moves on to the next URL, and behind the last one comes the first."""
    connection = Connection(f"{vhost.amqp_url},{NOBODY}", "bellhop/tests/1/nodes")
    publisher = Publisher(connection)
    await connection.start()
    await wait_until(lambda: publisher.failure is None, 10, "the publisher is ready")

    await wait_until(vhost.close_connections, 10, "the management API knows the connection and closes it")
    await wait_until(lambda: not connection.usable, 10, "the connection is lost")
    await wait_until(lambda: publisher.failure is None, 15, "it went by the dead node, back to the first")

    await publisher.publish("work", "mail.normal", Message(b"{}", Envelope(type="test.happened", source="tests")))
    await connection.close()


async def test_a_stream_is_read_from_the_node_that_answers(vhost: Vhost) -> None:
    """Reading a stream passes over a node that refuses connections."""
    connection = Connection(vhost.amqp_url, "bellhop/tests/1/publish")
    publisher = Publisher(connection)
    await connection.start()
    await wait_until(lambda: publisher.failure is None, 10, "the publisher is ready")
    await publisher.publish("notifications", "", Message(b"{}", Envelope(type="test.happened", source="tests", id="1")))
    await connection.close()

    deliveries = read_stream(f"{NOBODY},{vhost.amqp_url}", "notifier.log", offset="first", name="tests")
    async with aclosing(deliveries), asyncio.timeout(15):
        async for delivery in deliveries:
            assert delivery.envelope.id == "1"
            break
