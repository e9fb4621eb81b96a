"""Wait for a condition instead of sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def wait_until(
    predicate: Callable[[], T | Awaitable[T]], timeout: float = 10.0, description: str = "", interval: float = 0.02
) -> T:
    """Return the first true value that `predicate` (plain or async) gives; fail the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value  # type: ignore[return-value]
        if time.monotonic() > deadline:
            what = description or getattr(predicate, "__name__", "the condition")
            raise AssertionError(f"after {timeout:g} seconds still not true: {what} (last value: {value!r})")
        await asyncio.sleep(interval)
