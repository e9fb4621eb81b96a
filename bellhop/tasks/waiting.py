"""Wait for a dependency that is unavailable."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from bellhop.errors import Unavailable

WAIT_SECONDS = 900.0
"""How long a delivery waits for a database or a broker.

RabbitMQ's `consumer_timeout` (30 minutes) is the upper bound. A short wait would be wrong, too: work that was done but
not recorded is done again, and before RabbitMQ 4.0 each return to the queue counts against the message."""
PAUSE_SECONDS = 1.0

R = TypeVar("R")


class Deadline:
    """A wait in steps of a second. It ends after `WAIT_SECONDS`, or when the process stops."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping
        self._deadline = time.monotonic() + WAIT_SECONDS

    async def pause(self, error: Exception) -> None:
        """Wait for a second.

        Raises:
            `error`: the wait is over.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), PAUSE_SECONDS)
        if self._stopping.is_set() or time.monotonic() > self._deadline:
            raise error


async def until_available(stopping: asyncio.Event, action: Callable[[], Awaitable[R]]) -> R:
    """Repeat `action` while it raises `Unavailable`; return what it returns.

    Raises:
        Unavailable: the wait is over.
    """
    deadline: Deadline | None = None
    while True:
        try:
            return await action()
        except Unavailable as error:
            deadline = deadline or Deadline(stopping)
            await deadline.pause(error)
