"""Push: the broker hands out deliveries, up to `prefetch` at a time, and each gets its handler."""

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
"""Bodies of one queue whose handlers run at once, in bytes: a handler parses its body and makes others of it, several
times its size in memory. RabbitMQ limits what it hands out by number only, so the rest of `prefetch` waits unparsed."""

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

        `after`: subscribe only when that consumer, of the same connection, has handled what lay in its queue when it
        subscribed.

        `prefetch`: deliveries at most that the broker has handed out and that are not settled. All of them may be as
        large as the largest message of the queue, so it must be small where foreign messages come.
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
        # Ours, not the channel's: a lost connection must not cancel a handler half way through its effect.
        self._in_hand: set[asyncio.Task[None]] = set()
        self._bytes = 0
        self._waiting: deque[_Raw] = deque()

    @property
    def consuming(self) -> bool:
        """Say whether the broker has this consumer on its list."""
        return self._channel is not None

    @property
    def works(self) -> bool:
        """Say the same as `consuming`, for /readyz."""
        return self.consuming

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
            _settle(channel, method.delivery_tag, ack=False)
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
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                await other._backlog.handled.wait()
        except TimeoutError:
            if channel.is_open:
                other._backlog.pass_over(CATCH_UP_SECONDS)
        if channel.is_open and not self._stopping.is_set():
            self._subscribe(channel)

    def _subscribe(self, channel: Channel) -> None:
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        channel.basic_qos(prefetch_count=self._prefetch)
        self._backlog.subscribe(channel)
        self._tag = channel.basic_consume(self._queue, self._on_delivery)
        self._channel = channel

    def closed(self, reason: str) -> None:
        """Forget the channel and what waits; what is in hand goes on, and its ack will be dropped."""
        self._channel = None
        self._backlog.forget()
        self._waiting.clear()  # the broker hands it out again

    def _on_cancelled_by_broker(self, frame: object) -> None:
        # The queue was deleted, its leader moved, or a delivery was held for longer than the broker's consumer
        # timeout. Closing the channel makes the connection open another one, and that one subscribes anew.
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
        """Start as many as the budget allows, in order; one that is larger than the budget runs alone."""
        while self._waiting and (self._bytes == 0 or self._bytes + len(self._waiting[0][3]) <= BUDGET_BYTES):
            channel, method, properties, body = self._waiting.popleft()
            self._bytes += len(body)
            spawn(self._run(channel, method, properties, body), self._in_hand, "handling a delivery")

    async def _run(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        """Handle a delivery, then ack it or hand it back; every way out does one of the two."""
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
    """Ack, or nack back to the queue. Delivery tags end with their channel: on a closed one there is nothing to say.

    Nack and not reject: only `basic.reject` counts towards a quorum queue's delivery limit on RabbitMQ 4.3, and a
    restart of ours is no fault of the message.
    """
    if not channel.is_open:
        return
    if ack:
        channel.basic_ack(tag)
    else:
        channel.basic_nack(tag, requeue=True)
