"""Requests that wait for a task: long polls, woken by its outcome."""

import asyncio
from collections import defaultdict


class Waiters:
    """Wakes requests of this process; each must read again periodically, for outcomes that other replicas applied."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    async def wait(self, task_id: str, timeout: float) -> None:
        """Return when something happened to the task, or after `timeout` seconds."""
        event = asyncio.Event()
        self._waiting[task_id].add(event)
        try:
            async with asyncio.timeout(timeout):
                await event.wait()
        except TimeoutError:
            return
        finally:
            self._waiting[task_id].discard(event)
            if not self._waiting[task_id]:
                del self._waiting[task_id]

    def wake(self, task_ids: list[str]) -> None:
        """Wake the requests that wait for any of these tasks."""
        for task_id in task_ids:
            for event in self._waiting.get(task_id, ()):
                event.set()
