"""Group commit: what is written at the same time shares one transaction, and so one sync of the disk.

While one transaction commits, the next writes gather; under load a commit serves hundreds of them, at rest each
has its own. Nobody waits for a timer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseAway

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")
Apply = Callable[[AsyncConnection, list[T]], Awaitable[list[R]]]
_Entry = tuple[Any, "asyncio.Future[Any]"]


class GroupCommit:
    """The one writer of a database within this process."""

    def __init__(self, database: Database, *, max_items: int = 500) -> None:
        self._database = database
        self._max_items = max_items
        self._waiting: dict[Apply[Any, Any], list[_Entry]] = {}
        self._writer: asyncio.Task[None] | None = None

    async def write(self, apply: Apply[T, R], item: T) -> R:
        """Return `apply`'s result for `item`, after it was committed.

        All items that wait for the same `apply` are given to it as one list, and it returns as many results in the
        same order. An item whose batch fails is tried once more by itself, so that it fails only for its own fault.

        Raises:
            DatabaseAway: nothing was written, or it is unknown whether it was.
        """
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(apply, []).append((item, future))
        if self._writer is None:
            self._writer = asyncio.create_task(self._drain())
        return await future

    async def close(self) -> None:
        """Wait until everything handed in is written."""
        while self._writer is not None:
            await asyncio.wait([self._writer])

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._commit(self._take())
        finally:
            self._writer = None

    def _take(self) -> dict[Apply[Any, Any], list[_Entry]]:
        batch, self._waiting = self._waiting, {}
        for apply, entries in batch.items():
            if len(entries) > self._max_items:
                self._waiting[apply] = entries[self._max_items :]
                batch[apply] = entries[: self._max_items]
        return batch

    async def _commit(self, batch: dict[Apply[Any, Any], list[_Entry]]) -> None:
        done: list[tuple[asyncio.Future[Any], Any]] = []
        try:
            async with self._database.write() as connection:
                for apply, entries in batch.items():
                    results = await apply(connection, [item for item, _ in entries])
                    done += zip((future for _, future in entries), results, strict=True)
        except Exception as error:
            alone = sum(map(len, batch.values())) == 1
            if not alone and not isinstance(error, DatabaseAway):
                log.warning(
                    "a group commit failed; writing one by one", items=sum(map(len, batch.values())), error=repr(error)
                )
            for apply, entries in batch.items():
                for entry in entries:
                    if alone or isinstance(error, DatabaseAway):
                        _fail(entry[1], error)
                    else:
                        await self._commit({apply: [entry]})
            return
        for future, result in done:
            if not future.done():  # its owner may have been cancelled meanwhile
                future.set_result(result)


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
