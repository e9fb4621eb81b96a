"""Push: the broker hands out deliveries, up to `prefetch` at a time, and each gets its handler."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from bellhop.amqp import spans
from bellhop.amqp.connection import Connection
from bellhop.amqp.errors import HandlerSignal, Hold, Reject
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.amqp.settling import decode, settle, settle_failed, undecodable
from bellhop.background import spawn
from bellhop.observe.logs import get_logger

Handler = Callable[[Delivery], Awaitable[None]]

PAUSE_SECONDS = 2.0
"""Before a delivery whose handler said `Hold` is tried again: a dependency is away, so nothing is urgent."""

PATIENCE_SECONDS = 900.0
"""How long a delivery is held like that: well under the half hour after which RabbitMQ takes it for forgotten
(https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""

BUDGET_BYTES = 32 * 1024 * 1024
"""Bodies of one queue whose handlers run at once, in bytes: a handler parses its body and makes others of it, several
times its size in memory. RabbitMQ limits what it hands out by number only, so the rest of `prefetch` waits unparsed."""

QUIET_SECONDS = 0.2
CATCH_UP_SECONDS = 30.0
"""A consumer that comes after another waits so long at most, and then subscribes: the other one may be stuck."""

log = get_logger(__name__)

_Raw = tuple[Channel, Basic.Deliver, BasicProperties, bytes]


class Consumer:
    """One queue, one handler. Consumes again after every reconnect, and when the broker cancels it."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        queue: str,
        handler: Handler,
        *,
        prefetch: int = 50,
        policy: RetryPolicy = DEFAULT,
        after: "Consumer | None" = None,
    ) -> None:
        """`publisher` moves messages to the retry ladder and to the dead letters.

        `after`: subscribe only when that consumer, of the same connection, has handled what lay in its queue.

        `prefetch`: deliveries at most that the broker has handed out and that are not settled. All of them may be as
        large as the largest message of the queue, so it must be small where foreign messages come.
        """
        self._connection = connection
        self._publisher = publisher
        self._queue = queue
        self._handler = spans.traced(handler)
        self._prefetch = prefetch
        self._policy = policy
        self._after = after
        self._subscribing: set[asyncio.Task[None]] = set()
        self._busy_at = 0.0
        self._channel: Channel | None = None
        self._tag = ""
        self._stopping = asyncio.Event()
        self._holding = False
        # Ours, not the channel's: a lost connection must not cancel a handler half way through its effect.
        self._in_hand: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._waiting: deque[_Raw] = deque()

    @property
    def consuming(self) -> bool:
        """Say whether the broker has this consumer on its list."""
        return self._channel is not None

    @property
    def queue(self) -> str:
        """Return the name of the queue."""
        return self._queue

    def start(self) -> None:
        """Consume from now on, whenever there is a connection."""
        self._connection.add(self)

    async def stop(self, timeout: float) -> None:
        """Take nothing new, give what is in hand `timeout` seconds, and hand the rest back."""
        self._stopping.set()
        self._connection.remove(self)
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(self._tag)
        while self._waiting:
            channel, method, _, _ = self._waiting.popleft()
            settle(channel, method.delivery_tag, ack=False)
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=timeout)
        for task in self._in_hand:
            task.cancel()
        if self._in_hand:
            await asyncio.wait(self._in_hand)

    def opened(self, channel: Channel) -> None:
        """Subscribe on a fresh channel, as soon as the consumer before this one has caught up."""
        if self._after is None:
            self._subscribe(channel)
        else:
            spawn(self._subscribe_after(self._after, channel), self._subscribing, "subscribing")

    async def _subscribe_after(self, other: "Consumer", channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + CATCH_UP_SECONDS
        # Silence is no event that one could wait for.
        while channel.is_open and not other.caught_up and loop.time() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(QUIET_SECONDS / 4)
        if channel.is_open and not self._stopping.is_set():
            self._subscribe(channel)

    def _subscribe(self, channel: Channel) -> None:
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._busy()
        self._tag = channel.basic_consume(self._queue, self._on_delivery, callback=self._busy)
        self._channel = channel

    def _busy(self, _frame: object = None) -> None:
        self._busy_at = asyncio.get_running_loop().time()

    @property
    def caught_up(self) -> bool:
        """Say whether the queue was empty a moment ago: nothing is in hand, and nothing came for `QUIET_SECONDS`."""
        quiet = asyncio.get_running_loop().time() - self._busy_at > QUIET_SECONDS
        return self.consuming and quiet and not self._in_hand and not self._waiting

    def closed(self, reason: str) -> None:
        """Forget the channel and what waits; what is in hand goes on, and its ack will be dropped."""
        self._channel = None
        self._waiting.clear()  # the broker hands it out again

    def _on_cancelled_by_broker(self, frame: object) -> None:
        # The queue was deleted, its leader moved, or a delivery was held for longer than the broker's consumer
        # timeout. Closing the channel makes the connection open another one, and that one subscribes anew.
        log.warning("RabbitMQ cancelled the consumer; subscribing again", queue=self._queue)
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _on_delivery(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        if self._stopping.is_set():
            settle(channel, method.delivery_tag, ack=False)
            return
        self._busy()
        self._waiting.append((channel, method, properties, body))
        self._start_handlers()

    def _start_handlers(self) -> None:
        """Start as many as the budget allows, in order; one that is larger than the budget runs alone."""
        while self._waiting and (self._bytes == 0 or self._bytes + len(self._waiting[0][3]) <= BUDGET_BYTES):
            channel, method, properties, body = self._waiting.popleft()
            self._bytes += len(body)
            spawn(self._handle(channel, method, properties, body), self._in_hand, "handling a delivery")

    async def _handle(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        """Run the handler; every way out settles the delivery."""
        ack = False
        try:
            ack = await self._patiently(channel, method, properties, body)
        finally:
            settle(channel, method.delivery_tag, ack=ack)
            self._bytes -= len(body)
            if not self._stopping.is_set():
                self._start_handlers()

    async def _patiently(
        self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes
    ) -> bool:
        """Try until the handler is able to work at all; say whether the delivery has its place.

        Handing it back at once would do harm: before RabbitMQ 4.3 every return counts towards the delivery limit,
        and a database that is away for a minute would fill the dead letters.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + PATIENCE_SECONDS
        while channel.is_open and not self._stopping.is_set() and loop.time() < give_up:
            try:
                await self._run(method, properties, body)
            except Hold as signal:
                if not self._holding:  # one line for all that are held, not one each
                    log.warning("holding messages until they can be handled", queue=self._queue, reason=str(signal))
                self._holding = True
                await self._pause()
            else:
                self._holding = False
                return True
        return False

    async def _run(self, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        try:
            delivery = decode(self._queue, method, properties, body)
        except Exception as error:  # whatever it is that cannot be read: handed back, it would come again at once
            foreign = undecodable(self._queue, method, properties, body)
            await settle_failed(self._publisher, self._policy, foreign, Reject(f"undecodable: {error}"))
            return
        try:
            await self._handler(delivery)
        except HandlerSignal as signal:
            await settle_failed(self._publisher, self._policy, delivery, signal)
        except Exception as error:
            log.exception("a handler failed", queue=self._queue, id=delivery.envelope.id, attempt=delivery.attempt)
            await settle_failed(self._publisher, self._policy, delivery, error)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._stopping.wait()
        except TimeoutError:
            return
