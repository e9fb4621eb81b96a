"""Group commit: what is written at the same time shares one transaction, and so one sync of the disk.

While one transaction commits, the next writes are queued: under load a commit serves hundreds of them, at rest each
write has a commit of its own. Foreground writes commit as soon as the writer is idle. Background writes
(`background=True`) are batched for up to `GATHER_SECONDS`, in commits of their own, so that no request waits for them.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseConflict, DatabaseUnavailable, first_in_transaction

GATHER_SECONDS = 0.02
ATTEMPTS = 4
"""Attempts to commit a transaction that the database rolls back in favour of another."""
CONFLICT_SECONDS = 0.05
SLOW_SECONDS = 1.0

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Apply = Callable[[AsyncConnection, list[T]], Awaitable[list[R]]]
_Write = tuple[Any, "asyncio.Future[Any]"]
_Batch = dict[Apply[Any, Any], list[_Write]]


class GroupCommit:
    """The one writer of a database within this process."""

    def __init__(self, database: Database, *, max_items: int = 500) -> None:
        self._database = database
        self._max_items = max_items
        self._waiting: _Batch = {}
        self._background: _Batch = {}
        self._background_until = 0.0
        self._wakeup = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def write(self, apply: Apply[T, R], item: T, *, background: bool = False) -> R:
        """Return `apply`'s result for `item`, after it was committed.

        `background`: no client waits for the result; the write may wait up to `GATHER_SECONDS` for others.

        All items that wait for the same `apply` are passed to it as one list; it returns as many results, in the same
        order. If a batch fails, each of its items is written again in a transaction of its own, so that an item fails
        only by its own error. If the database does not answer a commit, the items that wait behind it fail, too.
        In a context with `first_in_transaction` an item has a transaction of its own.

        A cancelled item that is still queued is not written.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        if first_in_transaction.get() is not None:
            await self._commit({apply: [(item, future)]})
            return await future
        if background and not self._background:
            self._background_until = asyncio.get_running_loop().time() + GATHER_SECONDS
        (self._background if background else self._waiting).setdefault(apply, []).append((item, future))
        self._wakeup.set()
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Wait until all queued writes have ended."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._background:
                if self._waiting:
                    await self._commit(self._take(self._waiting))
                if self._background and loop.time() >= self._background_until:
                    await self._commit(self._take(self._background))
                elif not self._waiting:
                    self._wakeup.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._wakeup.wait(), self._background_until - loop.time())
        finally:
            self._writer = None

    def _take(self, waiting: _Batch) -> _Batch:
        batch: _Batch = {}
        rest: _Batch = {}
        for apply, entries in waiting.items():
            # Skip items whose caller was cancelled: it expects that nothing is written.
            wanted = [entry for entry in entries if not entry[1].done()]
            batch[apply] = wanted[: self._max_items]
            rest[apply] = wanted[self._max_items :]
        waiting.clear()
        waiting |= {apply: entries for apply, entries in rest.items() if entries}
        return {apply: entries for apply, entries in batch.items() if entries}

    async def _commit(self, batch: _Batch, attempt: int = 1) -> None:
        if not batch:
            return
        began = asyncio.get_running_loop().time()
        done: list[tuple[asyncio.Future[Any], Any]] = []
        try:
            async with self._database.write() as connection:
                for apply, entries in batch.items():
                    results = await apply(connection, [item for item, _ in entries])
                    done += zip((future for _, future in entries), results, strict=True)
        except DatabaseConflict as error:
            if attempt < ATTEMPTS:
                await asyncio.sleep(random.uniform(0, CONFLICT_SECONDS * attempt))
                await self._commit(batch, attempt + 1)
            else:
                _fail_all(batch, error)
        except DatabaseUnavailable as error:
            _fail_all(batch, error)
            if asyncio.get_running_loop().time() - began > SLOW_SECONDS:
                # The failure was slow: items that arrived meanwhile would wait as long again, beyond their limit.
                _fail_all(self._waiting, error)
                self._waiting.clear()
        except Exception as error:
            if sum(map(len, batch.values())) == 1:
                _fail_all(batch, error)
                return
            log.warning(
                "a group commit failed; writing one by one", items=sum(map(len, batch.values())), error=repr(error)
            )
            for apply, entries in batch.items():
                for entry in entries:
                    await self._commit({apply: [entry]})
        else:
            for future, result in done:
                if not future.done():  # its caller may have been cancelled
                    future.set_result(result)


def _fail_all(batch: _Batch, error: Exception) -> None:
    for entries in batch.values():
        for _, future in entries:
            if not future.done():
                future.set_exception(error)
