"""Publishing: what a returned `publish` promises, and what each error means."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bellhop.amqp.connection import Connection
from bellhop.amqp.errors import BrokerUnavailable, Refused, Unconfirmed, Unroutable
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from tests.support import wait_until
from tests.support.broker import Vhost


def message(body: bytes = b"{}", **envelope: str) -> Message:
    return Message(body, Envelope(type="test.happened", source="tests", **envelope))


@pytest.fixture
async def connection(vhost: Vhost) -> AsyncIterator[Connection]:
    connection = Connection(vhost.amqp_url, "bellhop/tests/1/publish")
    await connection.start()
    yield connection
    await connection.close()


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    publisher = Publisher(connection)
    await wait_until(lambda: publisher.failure is None, 10, "the publisher is ready")
    return publisher


async def test_a_confirmed_message_lies_in_the_queue_with_its_envelope(vhost: Vhost, publisher: Publisher) -> None:
    """What `publish` returned for is durable, typed, and carries the CloudEvents attributes."""
    sent = message(b'{"n":1}', id="event-1", subject="subject-1")

    await publisher.publish("work", "mail.normal", sent)

    received = await vhost.get("mail.normal")
    assert received is not None
    assert received.body == b'{"n":1}'
    assert received.type == "test.happened"
    assert received.delivery_mode == 2
    assert received.headers["cloudEvents:id"] == "event-1"
    assert received.headers["cloudEvents:subject"] == "subject-1"


async def test_an_unroutable_message_is_an_error(publisher: Publisher) -> None:
    """A routing key that nothing is bound to raises, instead of losing the message."""
    with pytest.raises(Unroutable, match="no-such-key"):
        await publisher.publish("work", "no-such-key", message())


async def test_unroutable_messages_of_one_event_in_flight_all_fail(publisher: Publisher) -> None:
    """Returns are matched to their own attempt even when every message carries the same event id."""
    attempts = [publisher.publish("work", "no-such-key", message(id="same")) for _ in range(50)]

    results = await asyncio.gather(*attempts, return_exceptions=True)

    assert [type(result) for result in results] == [Unroutable] * 50


async def test_a_full_queue_refuses(vhost: Vhost, publisher: Publisher) -> None:
    """A queue at its limit answers nack; what was confirmed is exactly what lies there."""
    policy = {"pattern": "^mail\\.bulk$", "definition": {"max-length": 5, "overflow": "reject-publish"}, "priority": 9}
    await vhost.management.put(f"/api/policies/{vhost.name}/tight", json=policy | {"apply-to": "queues"})

    async def until_refused() -> int:
        for confirmed in range(1000):
            try:
                await publisher.publish("work", "mail.bulk", message())
            except Refused:
                return confirmed
        raise AssertionError("a queue of 5 took 1000 messages")

    confirmed = await until_refused()
    assert await vhost.depth("mail.bulk") == confirmed


async def test_without_a_connection_publishing_fails_at_once() -> None:
    """Nothing waits for a broker that is away: the caller decides what to do instead."""
    connection = Connection("amqp://127.0.0.1:1/%2F", "bellhop/tests/1/publish")
    publisher = Publisher(connection)
    await connection.start()

    with pytest.raises(BrokerUnavailable, match="no connection to RabbitMQ"):
        await publisher.publish("work", "mail.normal", message())

    await connection.close()


async def test_a_queue_that_confirms_nothing_stops_no_other(
    vhost: Vhost, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages for it are refused immediately, others go out; its late confirms end the failure."""
    late: list[Any] = []
    settle = publisher._settle

    def hold_back(tag: int, answer: Any) -> None:
        if publisher._outstanding[tag].route == ("work", "mail.bulk"):
            late.append((tag, answer))
        else:
            settle(tag, answer)

    monkeypatch.setattr(publisher, "_settle", hold_back)
    with pytest.raises(Unconfirmed):
        await publisher.publish("work", "mail.bulk", message())
    with pytest.raises(BrokerUnavailable, match=r"mail\.bulk"):
        await publisher.publish("work", "mail.bulk", message())
    await publisher.publish("work", "mail.urgent", message())
    assert publisher.failure is None

    monkeypatch.undo()
    for tag, answer in late:
        settle(tag, answer)
    await publisher.publish("work", "mail.bulk", message())
    assert publisher.unconfirmed == 0


async def test_publishing_works_again_after_the_connection_was_cut(vhost: Vhost, publisher: Publisher) -> None:
    """The connection comes back by itself, with its confirm channel."""
    await publisher.publish("work", "mail.normal", message())
    await wait_until(lambda: vhost.close_connections(), 15, "the management API sees the connection")
    await wait_until(lambda: publisher.failure is not None, 10, "the loss is noticed")

    await wait_until(lambda: publisher.failure is None, 15, "the publisher is ready again")
    await publisher.publish("work", "mail.normal", message())

    assert await vhost.depth("mail.normal") == 2


async def test_a_cut_under_load_loses_nothing_that_was_confirmed(vhost: Vhost, publisher: Publisher) -> None:
    """While connections are cut, every publish either returns, and the message is there, or raises."""
    confirmed = 0

    async def publish(number: int) -> None:
        nonlocal confirmed
        try:
            await publisher.publish("work", "mail.normal", message(id=str(number)))
        except BrokerUnavailable:
            await asyncio.sleep(0.05)
        except Exception:
            return
        else:
            confirmed += 1

    cutter = asyncio.create_task(vhost.close_connections())
    for number in range(0, 4000, 100):
        await asyncio.gather(*(publish(n) for n in range(number, number + 100)))
    await cutter

    assert 0 < confirmed <= await vhost.depth("mail.normal")
