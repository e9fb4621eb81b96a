"""Hold: a delivery whose handler cannot work is kept unacked and handled again, instead of requeued.

Before RabbitMQ 4.3 every requeue counts towards the delivery limit of a quorum queue: if deliveries were requeued, one
minute without the database would dead-letter them.
"""

import asyncio
from collections.abc import Awaitable, Callable

from bellhop.amqp.errors import GiveBack, Hold
from bellhop.observe.logs import get_logger

PAUSE_SECONDS = 2.0
"""Pause between two calls of the handler for a held delivery."""
LIMIT_SECONDS = 900.0
"""How long a delivery is held: less than RabbitMQ's consumer timeout of 30 minutes
(https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)."""

log = get_logger(__name__)


class Holding:
    """Runs the handlers of one queue, each again while it raises `Hold`."""

    def __init__(self, queue: str, stopping: asyncio.Event) -> None:
        self._queue = queue
        self._stopping = stopping
        self._logged = False

    async def run(self, handle: Callable[[], Awaitable[None]], usable: Callable[[], bool]) -> bool:
        """Return True when `handle` returned; False when its deliveries have to be requeued.

        That is when `usable` returns False (the channel is closed), when the process stops, and after `LIMIT_SECONDS`.

        Raises:
            GiveBack: the handler asked for it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LIMIT_SECONDS
        while usable() and not self._stopping.is_set() and loop.time() < deadline:
            try:
                await handle()
            except GiveBack:
                raise
            except Hold as signal:
                if not self._logged:  # one line for all deliveries of the queue, not one each
                    log.warning("holding messages until they can be handled", queue=self._queue, reason=str(signal))
                self._logged = True
                await self._pause()
            else:
                self._logged = False
                return True
        return False

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(PAUSE_SECONDS):
                await self._stopping.wait()
        except TimeoutError:
            return
