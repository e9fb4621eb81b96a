"""Handle messages in batches: one handler call and one ack for all messages that are ready.

A batch is handled when `size` messages are ready, or `interval` seconds after the previous one.

A queue with a single active consumer is a lease: no other consumer receives its messages. A process whose handler
cannot work ends the lease (`GiveBack`), and consumes again when it is `usable`.

The implementation is a consumer with a large prefetch: `basic.get` would cost a round trip for each message and ignore
prefetch (https://www.rabbitmq.com/docs/consumers#polling).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from pika.channel import Channel
from pika.spec import Basic, BasicProperties

from bellhop.amqp import spans
from bellhop.amqp.connection import Connection
from bellhop.amqp.decoding import receive
from bellhop.amqp.errors import GiveBack, Hold
from bellhop.amqp.handling import settled
from bellhop.amqp.handling.hold import Holding
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.background import Background
from bellhop.errors import Unavailable
from bellhop.observe.logs import get_logger

BatchHandler = Callable[[list[Delivery]], Awaitable[None]]

PAUSE_SECONDS = 2.0
MAX_PAUSE_SECONDS = 60.0

log = get_logger(__name__)


async def always() -> None:
    """Default of `usable`: the handler can always work."""


class _ReadyDelivery(NamedTuple):
    tag: int
    delivery: Delivery


class BatchPuller:
    """One queue, and one handler that is called with a batch of deliveries."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        queue: str,
        handler: BatchHandler,
        *,
        size: int = 2000,
        interval: float = 5.0,
        policy: RetryPolicy = DEFAULT,
        counts: Callable[[Delivery], bool] = lambda _: True,
        usable: Callable[[], Awaitable[None]] = always,
    ) -> None:
        """Nothing is consumed before `start`.

        Args:
            connection: the connection to consume on.
            publisher: publishes to the retry queues and to the dead letters.
            queue: the name of the queue.
            handler: takes a batch; must be idempotent: after any error it may be called again with the same messages.
            size: messages in a batch, at most.
            interval: seconds between two batches, at most, while messages are ready.
            policy: how often and when a message is retried.
            counts: returns whether a message counts as `pending`.
            usable: raises `Unavailable` while the handler could not work; called each time before consuming.
        """
        self._connection = connection
        self._queue = queue
        self._handler = spans.traced_batch(queue, handler)
        self._size = size
        self._interval = interval
        self._settle_one = settled(lambda delivery: self._handler([delivery]), publisher, policy)
        self._counts = counts
        self._usable = usable
        self._offered: Channel | None = None  # open, not consuming yet
        self._failures = 0  # consecutive give-backs since the last batch that succeeded
        self._not_before = 0.0
        self._waiting_to_subscribe = False
        self._active = False  # whether anything came on this channel
        self._channel: Channel | None = None
        self._tag = ""
        self._depth = 0
        self._ready: deque[_ReadyDelivery] = deque()
        self._full = asyncio.Event()
        self._stopping = asyncio.Event()
        self._holding = Holding(queue, self._stopping)
        self._background = Background()

    @property
    def consuming(self) -> bool:
        """Return whether the consumer is registered with the broker."""
        return self._channel is not None

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return self._queue

    @property
    def works(self) -> bool:
        """Return whether this consumer is in order, for /readyz: True also while another replica consumes."""
        return self._background.failure is None

    @property
    def pending(self) -> int | None:
        """Return how many messages wait for a batch: prefetched, plus the queue's depth when it was last read.

        None until a message was delivered here: of the consumers of a queue, only the active one can count.
        """
        if self._channel is None or not self._active:
            return None
        return sum(self._counts(waiting.delivery) for waiting in self._ready) + self._depth

    def start(self) -> None:
        """Start to consume, now and after every reconnect. Returns immediately."""
        self._connection.add(self)
        self._background.keep(f"pulling from {self._queue}", self._pull)

    async def stop(self, timeout: float) -> None:
        """Finish the current batch within `timeout` seconds, and requeue what is not handled."""
        self._connection.remove(self)
        self._stopping.set()
        await self._background.stop(timeout)
        if self._channel is None or not self._channel.is_open:
            return
        if self._ready:
            # Nack: messages requeued by a closing channel would count as failed deliveries.
            self._channel.basic_nack(self._ready[-1].tag, multiple=True, requeue=True)
        self._channel.basic_cancel(self._tag)

    def opened(self, channel: Channel) -> None:
        """Take a new channel; `_pull` subscribes on it."""
        self._ready.clear()
        self._offered = channel
        self._full.set()

    async def _subscribe(self) -> None:
        """Consume on the offered channel. Prefetch is two batches: one is collected while the other is handled.

        Raises:
            Unavailable: the handler could not work now.
        """
        await self._usable()
        channel = self._offered
        if channel is None or not channel.is_open:
            return
        channel.add_on_cancel_callback(self._on_cancelled_by_broker)
        channel.basic_qos(prefetch_count=min(65_535, 2 * self._size))
        self._tag = channel.basic_consume(self._queue, self._on_delivery)
        self._channel, self._offered = channel, None

    def give_back(self, reason: str) -> None:
        """Stop consuming, so that another replica can, and begin again when `usable`. Idempotent.

        The channel is closed, not only the consumer cancelled: closing requeues all unacked messages in their order
        before the next consumer receives any.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        self._failures += 1
        pause = min(MAX_PAUSE_SECONDS, PAUSE_SECONDS * 2 ** (self._failures - 1))
        self._not_before = asyncio.get_running_loop().time() + pause
        log.warning("gave the queue back to other replicas", queue=self._queue, reason=reason)
        self._channel = None
        self._active = False
        self._ready.clear()
        channel.close()

    def closed(self, reason: str) -> None:
        """Drop the prefetched messages: the broker delivers them again."""
        self._channel = self._offered = None
        self._active = False
        self._ready.clear()
        self._full.clear()

    def _on_cancelled_by_broker(self, frame: object) -> None:
        log.warning("RabbitMQ cancelled the consumer; subscribing again", queue=self._queue)
        if self._channel is not None and self._channel.is_open:
            self._channel.close()

    def _on_delivery(self, channel: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        waiting = _ReadyDelivery(method.delivery_tag, receive(self._queue, method, properties, body))
        # A redelivered message has waited already: handle it without delay.
        taken_over = not self._active and waiting.delivery.redelivered
        self._active = True
        self._ready.append(waiting)
        if len(self._ready) >= self._size or taken_over:
            self._full.set()

    async def _pull(self) -> None:
        while not self._stopping.is_set():
            self._ask_depth()
            await self._wait_for_batch()
            if self._offered is not None:
                await self._try_to_subscribe()
            channel = self._channel
            if not self._ready or channel is None:
                continue
            batch = [self._ready.popleft() for _ in range(min(self._size, len(self._ready)))]
            if len(self._ready) < self._size:
                self._full.clear()
            await self._apply(channel, batch)

    async def _try_to_subscribe(self) -> None:
        self._full.clear()
        wait = self._not_before - asyncio.get_running_loop().time()
        if wait <= 0:
            try:
                await self._subscribe()
            except Unavailable as error:
                if not self._waiting_to_subscribe:
                    log.warning("not consuming until it can work", queue=self._queue, reason=str(error))
                self._waiting_to_subscribe = True
                wait = PAUSE_SECONDS
            else:
                self._waiting_to_subscribe = False
                return
        await self._pause(wait)
        self._full.set()

    def _ask_depth(self) -> None:
        def answer(frame: Any) -> None:
            self._depth = frame.method.message_count

        if self._channel is not None and self._channel.is_open:
            self._channel.queue_declare(self._queue, passive=True, callback=answer)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _wait_for_batch(self) -> None:
        waiters = [asyncio.ensure_future(self._full.wait()), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(waiters, timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiter in waiters:
                waiter.cancel()

    async def _apply(self, channel: Channel, batch: list[_ReadyDelivery]) -> None:
        """Handle `batch` until every delivery in it is settled, then ack all with one ack.

        Nothing is acked before, so a crash loses nothing.
        """
        deliveries = [waiting.delivery for waiting in batch]
        try:
            done = await self._holding.run(lambda: self._handle(deliveries), lambda: channel.is_open)
        except GiveBack as signal:
            self.give_back(str(signal))
            return
        if not done:
            if not self._stopping.is_set():
                self.give_back("the batch was held too long")
            elif channel.is_open:
                channel.basic_nack(batch[-1].tag, multiple=True, requeue=True)
            return
        self._failures = 0
        if channel.is_open:
            channel.basic_ack(batch[-1].tag, multiple=True)

    async def _handle(self, deliveries: list[Delivery]) -> None:
        """Call the handler with all `deliveries`; if it fails, bisect the batch to isolate the failing delivery."""
        for delivery in deliveries:
            if delivery.error is not None:
                await self._settle_one(delivery)
        await self._handle_decoded([delivery for delivery in deliveries if delivery.error is None])

    async def _handle_decoded(self, deliveries: list[Delivery]) -> None:
        if len(deliveries) <= 1:
            for delivery in deliveries:
                await self._settle_one(delivery)
            return
        try:
            await self._handler(deliveries)
        except Hold:
            raise
        except Unavailable as error:
            raise Hold(str(error)) from error
        except Exception:
            half = len(deliveries) // 2
            await self._handle_decoded(deliveries[:half])
            await self._handle_decoded(deliveries[half:])
