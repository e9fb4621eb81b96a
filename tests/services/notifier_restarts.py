"""What happens to a notifier while its readers follow, and the publisher who goes on meanwhile."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.services.notifier_support import Process, raise_notification
from tests.support import Vhost

ABSENT_SECONDS = 10.0


class Publisher:
    """Raises notifications, and keeps their titles in order."""

    def __init__(self, vhost: Vhost) -> None:
        self._vhost = vhost
        self._numbers = itertools.count()
        self.published: list[str] = []

    async def one(self) -> str:
        """Raise one notification and return its title."""
        title = f"number {next(self._numbers)}"
        await raise_notification(self._vhost, title)
        self.published.append(title)
        return title

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raise up to twenty a second while the block runs."""
        stop = asyncio.Event()

        async def run() -> None:
            while not stop.is_set():
                await self.one()
                await asyncio.sleep(0.05)

        task = asyncio.create_task(run())
        try:
            yield
        finally:
            stop.set()
            await task


async def terminated(notifier: Process) -> None:
    """SIGTERM, and a start right afterwards."""
    assert await notifier.terminate() == 0
    await notifier.start()


async def killed(notifier: Process) -> None:
    """SIGKILL, and a start right afterwards."""
    await notifier.kill()
    await notifier.start()


async def absent(notifier: Process) -> None:
    """Nothing listens on the port for ten seconds."""
    await notifier.kill()
    await asyncio.sleep(ABSENT_SECONDS)
    await notifier.start()


FAULTS = (terminated, killed, absent)
