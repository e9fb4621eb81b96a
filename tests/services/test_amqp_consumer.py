"""Consuming: every way out of a handler settles the delivery, each in its own way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count
from typing import Any

import pytest

from bellhop.amqp import consumer as consumer_module
from bellhop.amqp.batches import BatchPuller
from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.errors import Defer, Hold, Reject, Retry
from bellhop.amqp.handling import hold
from bellhop.amqp.message import Delivery, Handler, Message
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import RetryPolicy
from bellhop.contracts.envelope import Envelope
from tests.support import wait_until
from tests.support.broker import Vhost

QUEUE = "mail.normal"


class Harness:
    """A consumer of mail.normal whose handler the test gives."""

    def __init__(self, vhost: Vhost) -> None:
        self.vhost = vhost
        self.consuming = Connection(vhost.amqp_url, "bellhop/tests/1/consume")
        self.publishing = Connection(vhost.amqp_url, "bellhop/tests/1/publish")
        self.publisher = Publisher(self.publishing)
        self.consumer: Consumer | BatchPuller | None = None

    async def start(self) -> None:
        await self.consuming.start()
        await self.publishing.start()
        await wait_until(lambda: self.publisher.failure is None, 10, "the publisher is ready")

    async def consume(self, handler: Handler, policy: RetryPolicy = RetryPolicy(), prefetch: int = 10) -> Consumer:
        self.consumer = consumer = Consumer(
            self.consuming, self.publisher, QUEUE, handler, policy=policy, prefetch=prefetch
        )
        consumer.start()
        await wait_until(lambda: consumer.consuming, 10, "the consumer is subscribed")
        return consumer

    async def publish(self, event_id: str = "event-1", attempt: int = 1, body: bytes = b"{}") -> None:
        envelope = Envelope(type="test.happened", source="tests", id=event_id)
        await self.publisher.publish("work", QUEUE, Message(body, envelope, attempt=attempt))

    async def stop(self) -> None:
        if self.consumer is not None:
            await self.consumer.stop(1)
        await self.consuming.close()
        await self.publishing.close()


@pytest.fixture
async def harness(vhost: Vhost) -> AsyncIterator[Harness]:
    harness = Harness(vhost)
    await harness.start()
    yield harness
    await harness.stop()


async def test_handlers_run_within_a_budget_of_bytes(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large messages few are handled at once, whatever the prefetch, and one beyond the budget runs alone."""
    monkeypatch.setattr(consumer_module, "BUDGET_BYTES", 250_000)
    running, most, done = 0, 0, []
    may_end = asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await may_end.wait()
        running -= 1
        done.append(len(delivery.body))

    sizes = [100_000, 100_000, 100_000, 400_000, 100]
    for number, size in enumerate(sizes):
        await harness.publish(f"event-{number}", body=b"x" * size)
    consumer = await harness.consume(handler)
    await wait_until(lambda: len(consumer._waiting) == 3, 10, "all have arrived and two are handled")
    assert running == 2

    may_end.set()

    await wait_until(lambda: len(done) == len(sizes), 10, "all are handled")
    assert sorted(done) == sorted(sizes)
    assert most == 2


async def test_what_waits_for_the_budget_goes_back_at_a_stop(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was handed out and not begun is lost."""
    monkeypatch.setattr(consumer_module, "BUDGET_BYTES", 1)

    async def handler(_delivery: Delivery) -> None:
        await asyncio.Event().wait()

    for number in range(3):
        await harness.publish(f"event-{number}", body=b"x" * 10)
    consumer = await harness.consume(handler)
    await wait_until(lambda: len(consumer._waiting) == 2, 10, "two wait")

    await consumer.stop(0.1)

    assert [delivery is not None for delivery in [await harness.vhost.get(QUEUE) for _ in range(3)]] == [True] * 3


async def unsettled(vhost: Vhost, queue: str = QUEUE) -> int:
    """Ready and unacked messages, by a consumer that gets everything back: delete-proof and immediate."""
    response = await vhost.management.get(f"/api/queues/{vhost.name}/{queue}")
    found: int = response.json().get("messages", -1)
    return found


def raising(error: Exception) -> tuple[Handler, list[Delivery]]:
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)
        raise error

    return handler, seen


async def test_a_handled_message_is_gone(harness: Harness) -> None:
    """A handler that returns acks its delivery."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)

    await harness.consume(handler)
    await harness.publish("event-7", body=b'{"a":1}')

    await wait_until(lambda: len(seen) == 1, 10, "the handler ran")
    assert (seen[0].envelope.id, seen[0].body, seen[0].attempt) == ("event-7", b'{"a":1}', 1)
    await harness.stop()
    assert await harness.vhost.depth(QUEUE) == 0


async def test_a_rejected_message_is_a_dead_letter_with_its_reason(harness: Harness) -> None:
    """`Reject` moves the message to the dead letters; reason, queue and body go with it."""
    handler, _ = raising(Reject("the template does not exist"))
    await harness.consume(handler)
    await harness.publish(body=b'{"keep":"me"}')

    dead = await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert dead.body == b'{"keep":"me"}'
    assert dead.headers["bellhop-reason"] == "rejected"
    assert dead.headers["bellhop-error"] == "the template does not exist"
    assert dead.headers["bellhop-queue"] == QUEUE


async def test_garbage_is_a_dead_letter_and_the_consumer_goes_on(harness: Harness) -> None:
    """A message without our envelope never reaches the handler, and the next one does."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)

    await harness.consume(handler)
    await harness.vhost.publish("work", QUEUE, b"\xff\x00garbage")
    await harness.publish("after")

    dead = await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert dead.body == b"\xff\x00garbage"
    assert "undecodable" in dead.headers["bellhop-error"]
    await wait_until(lambda: [each.envelope.id for each in seen] == ["after"], 10, "the next message is handled")


async def test_a_failed_message_waits_on_the_ladder(harness: Harness) -> None:
    """An unexpected error puts the message on the first retry queue with the attempt counted; the queue is free."""
    handler, seen = raising(RuntimeError("boom"))
    await harness.consume(handler)
    await harness.publish()

    await wait_until(lambda: len(seen) == 1, 10, "the handler ran")
    waiting = await wait_until(lambda: harness.vhost.get("retry.5s"), 10, "the message is on the first retry queue")
    assert waiting.headers["attempt"] == 2
    assert 4.0 <= waiting.expiration <= 5.0


async def test_a_rung_hands_the_message_back_to_its_queue(harness: Harness) -> None:
    """After its time on the ladder the message comes again, as the next attempt of the same event."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)
        if delivery.attempt == 1:
            raise Retry("the server is busy")

    await harness.consume(handler)
    await harness.publish("event-9")

    await wait_until(lambda: len(seen) == 2, 15, "the message came back")
    assert [(each.envelope.id, each.attempt, each.queue) for each in seen] == [
        ("event-9", 1, QUEUE),
        ("event-9", 2, QUEUE),
    ]


async def test_spent_attempts_end_in_a_dead_letter(harness: Harness) -> None:
    """The last attempt that the policy allows is followed by the dead letters, not by the ladder."""
    handler, _ = raising(Retry("still busy"))
    await harness.consume(handler, RetryPolicy(attempts=3))
    await harness.publish(attempt=3)

    dead = await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert (dead.headers["bellhop-reason"], dead.headers["attempt"]) == ("attempts-spent", 3)


async def test_not_now_counts_no_attempt(harness: Harness) -> None:
    """A handler whose database is away gets the same delivery again, as the same attempt."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) == 1:
            raise Hold("the database is away")

    await harness.consume(handler)
    await harness.publish()

    await wait_until(lambda: len(seen) == 2, 15, "the message came again")
    assert [each.attempt for each in seen] == [1, 1]


async def test_what_cannot_be_moved_on_is_held(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with moving it: it waits here, and does not come again and again from the queue."""
    monkeypatch.setattr(hold, "PAUSE_SECONDS", 0.2)
    publish, failures = harness.publisher.publish, iter(range(3))

    async def fails_first(exchange: str, *arguments: Any, **more: Any) -> None:
        if exchange == "dead" and next(failures, None) is not None:
            raise ValueError("a header that cannot travel")
        await publish(exchange, *arguments, **more)

    monkeypatch.setattr(harness.publisher, "publish", fails_first)
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)
        raise Reject("never")

    await harness.consume(handler)
    await harness.publish()

    await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert [each.redelivered for each in seen] == [False] * 4


async def test_a_batch_of_which_one_cannot_be_moved_on_is_held(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays in hand, and the ack of a later batch does not take it along."""
    monkeypatch.setattr(hold, "PAUSE_SECONDS", 0.2)
    publish, failures = harness.publisher.publish, iter(range(2))

    async def fails_first(exchange: str, *arguments: Any, **more: Any) -> None:
        if exchange == "dead" and next(failures, None) is not None:
            raise ValueError("a header that cannot travel")
        await publish(exchange, *arguments, **more)

    monkeypatch.setattr(harness.publisher, "publish", fails_first)
    handled: list[str] = []

    async def handler(deliveries: list[Delivery]) -> None:
        if any(each.envelope.id == "bad" for each in deliveries):
            raise Reject("bad")
        handled.extend(each.envelope.id for each in deliveries)

    for event_id in ("bad", "a", "b"):
        await harness.publish(event_id)
    await pull(harness, handler, size=1, interval=0.2)

    dead = await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert dead.headers["cloudEvents:id"] == "bad"
    await wait_until(lambda: handled == ["a", "b"], 10, "the others are handled")


async def test_a_deferred_message_comes_back_as_the_same_attempt(harness: Harness) -> None:
    """It waits as long as was asked, carries what the handler gave it, and no attempt is counted."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)
        if len(seen) == 1:
            raise Defer("too fast", after=0.3, headers={"bellhop-turn": "7"})

    await harness.consume(handler)
    await harness.publish()

    await wait_until(lambda: len(seen) == 2, 4, "the message came again, well before the end of its retry queue")
    assert [(each.attempt, each.headers.get("bellhop-turn")) for each in seen] == [(1, None), (1, "7")]


async def test_stopping_hands_back_what_is_not_finished(harness: Harness) -> None:
    """A handler that outlives the shutdown is cancelled, and its message waits for the next consumer."""
    begun = asyncio.Event()

    async def handler(delivery: Delivery) -> None:
        begun.set()
        await asyncio.Event().wait()

    consumer = await harness.consume(handler)
    await harness.publish()
    await begun.wait()

    await consumer.stop(0.1)
    harness.consumer = None

    assert await wait_until(lambda: harness.vhost.depth(QUEUE), 10, "the message is ready again") == 1


async def test_a_consumer_that_the_broker_cancels_subscribes_again(harness: Harness) -> None:
    """Deleting the queue cancels the consumer; when the queue is back, so is the consumer."""
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> None:
        seen.append(delivery)

    consumer = await harness.consume(handler)
    await harness.vhost.management.delete(f"/api/queues/{harness.vhost.name}/{QUEUE}")
    await wait_until(lambda: not consumer.consuming, 10, "the cancellation is noticed")
    await harness.vhost.apply_topology()

    await wait_until(lambda: consumer.consuming, 15, "the consumer is back")
    await harness.publish()
    await wait_until(lambda: len(seen) == 1, 10, "it works")


async def test_consuming_goes_on_after_the_connection_was_cut(harness: Harness) -> None:
    """After a cut the consumer subscribes again without help."""
    seen: set[str] = set()

    async def handler(delivery: Delivery) -> None:
        seen.add(delivery.envelope.id)

    await harness.consume(handler)
    await harness.publish("before")
    await wait_until(lambda: seen == {"before"}, 10, "the first message is handled")
    await wait_until(lambda: harness.vhost.close_connections(), 15, "the management API sees the connections")
    await harness.vhost.publish("work", QUEUE, headers=ours("after"))

    await wait_until(lambda: seen == {"before", "after"}, 20, "the second message is handled")


def ours(event_id: str) -> dict[str, str | int]:
    return {
        "cloudEvents:id": event_id,
        "cloudEvents:source": "tests",
        "cloudEvents:type": "test.happened",
        "cloudEvents:time": "2026-01-01T00:00:00+00:00",
        "attempt": 1,
    }


async def pull(
    harness: Harness, handler: Callable[[list[Delivery]], object], size: int, interval: float
) -> BatchPuller:
    harness.consumer = puller = BatchPuller(
        harness.consuming,
        harness.publisher,
        QUEUE,
        handler,
        size=size,
        interval=interval,  # type: ignore[arg-type]
    )
    puller.start()
    await wait_until(lambda: puller.consuming, 10, "the puller is subscribed")
    return puller


async def test_a_batch_is_pulled_when_it_is_full(harness: Harness) -> None:
    """As many messages as a batch takes are handled together, without waiting for the interval."""
    batches: list[list[str]] = []

    async def handler(deliveries: list[Delivery]) -> None:
        batches.append([each.envelope.id for each in deliveries])

    await pull(harness, handler, size=5, interval=60)
    for number in range(10):
        await harness.publish(str(number))

    await wait_until(lambda: sum(map(len, batches)) == 10, 10, "both batches are handled")
    assert batches == [["0", "1", "2", "3", "4"], ["5", "6", "7", "8", "9"]]


async def test_what_does_not_fill_a_batch_is_pulled_after_the_interval(harness: Harness) -> None:
    """A lonely message is handled within the interval."""
    batches: list[list[str]] = []

    async def handler(deliveries: list[Delivery]) -> None:
        batches.append([each.envelope.id for each in deliveries])

    await pull(harness, handler, size=1000, interval=0.3)
    await harness.publish("lonely")

    await wait_until(lambda: batches == [["lonely"]], 10, "the message is handled")


async def test_one_bad_message_does_not_spoil_its_batch(harness: Harness) -> None:
    """The batch is halved until the guilty message stands alone; it is buried, and the others are handled."""
    handled: set[str] = set()

    async def handler(deliveries: list[Delivery]) -> None:
        if any(each.envelope.id == "bad" for each in deliveries):
            raise Reject("bad")
        handled.update(each.envelope.id for each in deliveries)

    for event_id in ("a", "b", "bad", "c", "d"):
        await harness.publish(event_id)
    await pull(harness, handler, size=5, interval=0.2)

    dead = await wait_until(lambda: harness.vhost.get("dead-letters"), 10, "a dead letter arrives")
    assert dead.headers["cloudEvents:id"] == "bad"
    await wait_until(lambda: handled == {"a", "b", "c", "d"}, 10, "the others are handled")


async def test_a_consumer_comes_after_another_that_has_caught_up(harness: Harness) -> None:
    """What lies in the first queue is handled before anything of the second, whichever was filled or started first."""
    await asyncio.gather(*(harness.publish(f"mail-{number}") for number in range(20)))
    envelope = Envelope(type="test.happened", source="tests")
    for _ in range(20):
        await harness.publisher.publish("work", "mail.cancel", Message(b"{}", envelope))
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.queue)

    first = Consumer(harness.consuming, harness.publisher, "mail.cancel", handle, prefetch=3)
    second = Consumer(harness.consuming, harness.publisher, QUEUE, handle, after=first)
    second.start()
    first.start()
    await wait_until(lambda: len(handled) == 40, 20, "all are handled")
    assert handled == ["mail.cancel"] * 20 + [QUEUE] * 20
    for consumer in (first, second):
        await consumer.stop(5)


async def test_only_what_lay_in_the_queue_is_waited_for(harness: Harness) -> None:
    """A slow handler and a steady stream: all of the old messages come first, and only some of the new ones."""
    await harness.publish("mail")
    old = {f"old-{number}" for number in range(12)}
    handled: list[str] = []

    async def publish(event_id: str) -> None:
        envelope = Envelope(type="test.happened", source="tests", id=event_id)
        await harness.publisher.publish("work", "mail.cancel", Message(b"{}", envelope))

    async def cancel(delivery: Delivery) -> None:
        await asyncio.sleep(0.1)
        handled.append(delivery.envelope.id)

    async def mail(delivery: Delivery) -> None:
        handled.append(delivery.envelope.id)

    async def more() -> None:
        for number in count():
            await publish(f"new-{number}")
            await asyncio.sleep(0.02)

    await asyncio.gather(*map(publish, old))
    stream = asyncio.create_task(more())
    first = Consumer(harness.consuming, harness.publisher, "mail.cancel", cancel, prefetch=3)
    second = Consumer(harness.consuming, harness.publisher, QUEUE, mail, after=first)
    second.start()
    first.start()
    await wait_until(lambda: "mail" in handled, 10, "the mail is handled")
    stream.cancel()
    before = handled[: handled.index("mail")]
    assert old <= set(before)
    assert len(before) < len(old) + 10, "it waited for messages that came later"
    for consumer in (first, second):
        await consumer.stop(5)


async def test_what_other_replicas_handle_is_not_waited_for(harness: Harness) -> None:
    """Two consumers share what lay in the queue: neither handles all of it, and neither waits for the rest."""
    await harness.publish("mail")
    envelope = Envelope(type="test.happened", source="tests")
    for _ in range(20):
        await harness.publisher.publish("work", "mail.cancel", Message(b"{}", envelope))
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.queue)
        await asyncio.sleep(0.05)

    first = Consumer(harness.consuming, harness.publisher, "mail.cancel", handle, prefetch=1)
    rival = Consumer(harness.consuming, harness.publisher, "mail.cancel", handle, prefetch=1)
    second = Consumer(harness.consuming, harness.publisher, QUEUE, handle, after=first)
    for consumer in (first, rival, second):
        consumer.start()
    await wait_until(lambda: len(handled) == 21, 10, "all are handled")
    assert handled[-1] == QUEUE
    for consumer in (first, rival, second):
        await consumer.stop(5)


async def test_a_consumer_that_waited_too_long_for_another_says_so(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler that hangs stops the other queues for a limited time; one warning, however many queues waited."""
    monkeypatch.setattr(consumer_module, "CATCH_UP_SECONDS", 0.5)
    await harness.publish("mail")
    await harness.publisher.publish("work", "mail.cancel", Message(b"{}", Envelope(type="test.happened", source="t")))
    handled: list[str] = []

    async def hang(_delivery: Delivery) -> None:
        await asyncio.Event().wait()

    async def mail(delivery: Delivery) -> None:
        handled.append(delivery.queue)

    first = Consumer(harness.consuming, harness.publisher, "mail.cancel", hang)
    followers = [
        Consumer(harness.consuming, harness.publisher, queue, mail, after=first) for queue in (QUEUE, "mail.bulk")
    ]
    for consumer in (first, *followers):
        consumer.start()
    await wait_until(lambda: handled == [QUEUE] and all(each.consuming for each in followers), 10, "they go on")
    warnings = [line for line in capsys.readouterr().out.splitlines() if "not handled in time" in line]
    assert len(warnings) == 1
    assert "mail.cancel" in warnings[0]
    for consumer in (first, *followers):
        await consumer.stop(0.1)
