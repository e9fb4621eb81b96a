"""Consume a queue: the broker pushes up to `prefetch` unsettled deliveries, and each one is passed to the handler."""

import asyncio
from collections import deque

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from bellhop.amqp import spans
from bellhop.amqp.backlog import Backlog
from bellhop.amqp.connection import Connection
from bellhop.amqp.decoding import receive
from bellhop.amqp.errors import GiveBack
from bellhop.amqp.handling import settled
from bellhop.amqp.handling.hold import Holding
from bellhop.amqp.message import Handler
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.background import spawn
from bellhop.observe.logs import get_logger

BUDGET_BYTES = 32 * 1024 * 1024
"""Maximum total size of the bodies of one queue whose handlers run concurrently: parsing a body takes several times its
size in memory. The prefetch of RabbitMQ is a number of messages, so the other deliveries wait without being parsed."""

CATCH_UP_SECONDS = 30.0
"""Maximum wait of a consumer for another one (`after`); then it subscribes, because the other one may be blocked."""

log = get_logger(__name__)

_Raw = tuple[Channel, Basic.Deliver, BasicProperties, bytes]


class Consumer:
    """One queue, one handler. It subscribes again after every reconnect, and after the broker has cancelled it."""

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
        """`publisher` publishes messages to the retry queues and to the dead letters.

        `after`: subscribe only when that consumer, of the same connection, has handled the messages that were in its
        queue when it subscribed.

        `prefetch`: maximum number of unsettled deliveries. Each may be as large as the largest message of the queue, so
        it must be small for queues to which others publish.
        """
        self._connection = connection
        self._queue = queue
        self._handle = settled(spans.traced(handler), publisher, policy)
        self._prefetch = prefetch
        self._after = after
        self._subscribing: set[asyncio.Task[None]] = set()
        self._backlog = Backlog(queue)
        self._channel: Channel | None = None
        self._tag = ""
        self._stopping = asyncio.Event()
        self._holding = Holding(queue, self._stopping)
        # Handlers continue after the channel is closed: a lost connection must not cancel an effect that has begun.
        self._in_hand: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._waiting: deque[_Raw] = deque()

    @property
    def consuming(self) -> bool:
        """Return whether this consumer is subscribed."""
        return self._channel is not None

    @property
    def works(self) -> bool:
        """Return `consuming`, for /readyz."""
        return self.consuming

    @property
    def queue(self) -> str:
        """Return the name of the queue."""
        return self._queue

    def start(self) -> None:
        """Subscribe when the connection is open, and after each reconnect."""
        self._connection.add(self)

    async def stop(self, timeout: float) -> None:
        """Stop consuming, wait `timeout` seconds for running handlers, and requeue all other deliveries."""
        self._stopping.set()
        self._connection.remove(self)
        if self._channel is not None and self._channel.is_open:
            self._channel.basic_cancel(self._tag)
        while self._waiting:
            channel, method, _, _ = self._waiting.popleft()
            _settle(channel, method.delivery_tag, ack=False)
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=timeout)
        for task in self._in_hand:
            task.cancel()
        if self._in_hand:
            await asyncio.wait(self._in_hand)

    def opened(self, channel: Channel) -> None:
        """Subscribe on a new channel, after the consumer `after` has handled its backlog."""
        if self._after is None:
            self._subscribe(channel)
        else:
            spawn(self._subscribe_after(self._after, channel), self._subscribing, "subscribing")

    async def _subscribe_after(self, other: "Consumer", channel: Channel) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await other._backlog.handled.wait()
        except TimeoutError:
            if channel.is_open:
                other._backlog.stop_waiting(CATCH_UP_SECONDS)
        if channel.is_open and not self._stopping.is_set():
            self._subscribe(channel)

    def _subscribe(self, channel: Channel) -> None:
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._backlog.subscribe(channel)
        self._tag = channel.basic_consume(self._queue, self._on_delivery)
        self._channel = channel

    def closed(self, reason: str) -> None:
        """Drop the channel and waiting deliveries; running handlers continue, and their acks are not sent."""
        self._channel = None
        self._backlog.forget()
        self._waiting.clear()  # the broker redelivers them

    def _on_cancelled_by_broker(self, frame: object) -> None:
        # The queue was deleted, its leader moved, or a delivery was held for longer than the broker's consumer
        # timeout. After the channel is closed, the connection opens another, on which the consumer subscribes again.
        log.warning("RabbitMQ cancelled the consumer; subscribing again", queue=self._queue)
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _on_delivery(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        if self._stopping.is_set():
            _settle(channel, method.delivery_tag, ack=False)
            return
        self._backlog.delivered()
        self._waiting.append((channel, method, properties, body))
        self._start_handlers()

    def _start_handlers(self) -> None:
        """Start handlers in the order of deliveries, within the budget; a body above the budget is handled alone."""
        while self._waiting and (self._bytes == 0 or self._bytes + len(self._waiting[0][3]) <= BUDGET_BYTES):
            channel, method, properties, body = self._waiting.popleft()
            self._bytes += len(body)
            spawn(self._run(channel, method, properties, body), self._in_hand, "handling a delivery")

    async def _run(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        """Handle a delivery, then ack or requeue it, also after an exception."""
        ack = False
        try:
            delivery = receive(self._queue, method, properties, body)
            ack = await self._holding.run(lambda: self._handle(delivery), lambda: channel.is_open)
        except GiveBack as signal:
            log.warning("handed a message back to other replicas", queue=self._queue, reason=str(signal))
        finally:
            _settle(channel, method.delivery_tag, ack=ack)
            self._backlog.settled(channel, method.delivery_tag)
            self._bytes -= len(body)
            if not self._stopping.is_set():
                self._start_handlers()


def _settle(channel: Channel, tag: int, *, ack: bool) -> None:
    """Ack, or nack with requeue. Delivery tags are valid on their channel only: on a closed one nothing is sent.

    Nack and not reject: on RabbitMQ 4.3 only `basic.reject` counts towards the delivery limit of a quorum queue, and a
    restart of the consumer must not count.
    """
    if not channel.is_open:
        return
    if ack:
        channel.basic_ack(tag)
    else:
        channel.basic_nack(tag, requeue=True)
