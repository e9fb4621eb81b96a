"""What lay in a queue when its consumer subscribed, until it is handled."""

import asyncio
from functools import partial
from typing import Any

from pika.channel import Channel

from bellhop.background import spawn
from bellhop.observe.logs import get_logger

LOOK_SECONDS = 0.25

log = get_logger(__name__)


class Backlog:
    """Counts by delivery tags: those of a channel begin at 1, and a queue hands out its oldest message first."""

    def __init__(self, queue: str) -> None:
        self.handled = asyncio.Event()
        self._queue = queue
        self._channel: Channel | None = None
        self._size: int | None = None
        """None: the broker has not said it yet."""
        self._settled = 0
        self._in_hand = 0
        self._looking: set[asyncio.Task[None]] = set()

    def subscribe(self, channel: Channel) -> None:
        """Ask for the size of the queue. The consumer subscribes on the same channel afterwards."""
        self.forget()
        self._channel = channel
        channel.queue_declare(self._queue, passive=True, callback=partial(self._told, channel))

    def forget(self) -> None:
        """The channel is gone: nothing is known until there is another one."""
        self.handled.clear()
        self._channel = None
        self._size = None
        self._settled = self._in_hand = 0

    def delivered(self) -> None:
        """Count a delivery."""
        self._in_hand += 1

    def settled(self, channel: Channel, tag: int) -> None:
        """Count a delivery that is settled; those of a former channel come again, on this one."""
        if channel is not self._channel:
            return
        self._in_hand -= 1
        if self._size is not None and tag <= self._size:
            self._settled += 1
            if self._settled == self._size:
                self.handled.set()

    def pass_over(self, seconds: float) -> None:
        """Wait no longer, after `seconds`; said once for all consumers that wait."""
        if not self.handled.is_set():
            left = "unknown" if self._size is None else self._size - self._settled
            log.warning(
                "what lay in the queue at the start is not handled in time; the queues after it are consumed now",
                queue=self._queue,
                left=left,
                seconds=seconds,
            )
            self.handled.set()

    def _told(self, channel: Channel, frame: Any) -> None:
        if channel is not self._channel:
            return
        self._size = frame.method.message_count
        if self._size == 0:
            self.handled.set()
        else:
            spawn(self._look(channel), self._looking, "looking at the backlog")

    async def _look(self, channel: Channel) -> None:
        """See whether other replicas took some of it: then the queue is empty before we have counted them all.

        The queue must be empty twice, with nothing in hand: what the broker has just sent is not here yet.
        """
        empty = 0
        while channel is self._channel and not self.handled.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            if not channel.is_open:
                return
            size: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            channel.queue_declare(self._queue, passive=True, callback=partial(_set, size))
            await asyncio.wait({size}, timeout=LOOK_SECONDS)
            empty = empty + 1 if size.done() and size.result() == 0 and self._in_hand == 0 else 0
            if empty == 2 and channel is self._channel:
                self.handled.set()


def _set(size: "asyncio.Future[int]", frame: Any) -> None:
    if not size.done():
        size.set_result(frame.method.message_count)
