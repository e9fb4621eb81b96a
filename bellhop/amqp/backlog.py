"""The backlog of a consumer: the messages that were in its queue when it subscribed."""

import asyncio
from functools import partial
from typing import Any

from pika.channel import Channel

from bellhop.background import spawn
from bellhop.observe.logs import get_logger

POLL_SECONDS = 0.25

log = get_logger(__name__)


class Backlog:
    """Counts by delivery tags: those of a channel begin with 1, and a queue delivers its oldest message first."""

    def __init__(self, queue: str) -> None:
        self.handled = asyncio.Event()
        self._queue = queue
        self._channel: Channel | None = None
        self._size: int | None = None
        """None: the broker has not answered yet."""
        self._settled = 0
        self._in_hand = 0
        self._polling: set[asyncio.Task[None]] = set()

    def subscribe(self, channel: Channel) -> None:
        """Request the size of the queue. The consumer then subscribes on the same channel."""
        self.forget()
        self._channel = channel
        channel.queue_declare(self._queue, passive=True, callback=partial(self._on_size, channel))

    def forget(self) -> None:
        """Drop the counts: the channel is closed."""
        self.handled.clear()
        self._channel = None
        self._size = None
        self._settled = self._in_hand = 0

    def delivered(self) -> None:
        """Count a delivery."""
        self._in_hand += 1

    def settled(self, channel: Channel, tag: int) -> None:
        """Count a settled delivery; those of a former channel are redelivered on this one."""
        if channel is not self._channel:
            return
        self._in_hand -= 1
        if self._size is not None and tag <= self._size:
            self._settled += 1
            if self._settled == self._size:
                self.handled.set()

    def stop_waiting(self, seconds: float) -> None:
        """End the wait of all consumers that come after this one; `seconds`, which they waited, is logged."""
        if not self.handled.is_set():
            left = "unknown" if self._size is None else self._size - self._settled
            log.warning(
                "the backlog of the queue is not handled in time; the queues after it are consumed now",
                queue=self._queue,
                left=left,
                seconds=seconds,
            )
            self.handled.set()

    def _on_size(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:
            return
        self._size = frame.method.message_count
        if self._size == 0:
            self.handled.set()
        else:
            spawn(self._poll(channel), self._polling, "polling the size of the queue")

    async def _poll(self, channel: Channel) -> None:
        """Poll the size of the queue: if other replicas handle a part of the backlog, the counts here stay below it.

        The queue must be empty twice, without unsettled deliveries: messages may be on their way from the broker.
        """
        empty = 0
        while channel is self._channel and not self.handled.is_set():
            await asyncio.sleep(POLL_SECONDS)
            if not channel.is_open:
                return
            size: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            channel.queue_declare(self._queue, passive=True, callback=partial(_set, size))
            await asyncio.wait({size}, timeout=POLL_SECONDS)
            empty = empty + 1 if size.done() and size.result() == 0 and self._in_hand == 0 else 0
            if empty == 2 and channel is self._channel:
                self.handled.set()


def _set(size: "asyncio.Future[int]", frame: Any) -> None:
    if not size.done():
        size.set_result(frame.method.message_count)
