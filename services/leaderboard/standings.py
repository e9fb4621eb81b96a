"""The rankings of all boards: what readers see, and the transactions that change them.

    apply       scores -> one transaction -> the next snapshots       (the replica with the active consumer)
    refresh     what other replicas committed -> the next snapshots   (every replica, every few seconds)
    configure, delete, erase                                          (any replica)

Snapshots are put into the cache after the commit, so it is never ahead of the database. Each transaction first compares
the database's version with that of the cache and loads what other replicas committed, so any replica can apply scores.
All costs grow with what changed, not with the number of boards.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from bellhop.contracts.base import now
from bellhop.contracts.scores import BoardSettings
from bellhop.sql.database import DatabaseUnavailable
from services.leaderboard.applying import claim_new, compute_updates, save_updates
from services.leaderboard.cache import CachedRanking, RankingCache
from services.leaderboard.errors import BoardInUse, TooManyBoards, UnknownBoard
from services.leaderboard.loading import CacheLoader
from services.leaderboard.scores import Scores
from services.leaderboard.scoring import current_season, from_micros, to_micros
from services.leaderboard.small import AnyRanking, SmallRanking
from services.leaderboard.store import RELOAD_SECONDS, RankingRecord, Store

DEFAULTS = BoardSettings()
"""Settings of a board that is created by its first score."""


@dataclass(frozen=True, slots=True)
class RankingChange:
    """What one commit changed in one ranking."""

    board: str
    season: str
    before: AnyRanking
    after: AnyRanking
    changed: int
    """Number of players whose result changed."""


class Standings:
    """The rankings of all boards. Readers never wait for a change."""

    def __init__(self, store: Store, *, past_seasons: int, boards_limit: int = 100_000) -> None:
        """`past_seasons`: rankings of past seasons in memory, at most.

        `boards_limit`: boards that `configure` and `refused` allow, at most.
        """
        self._store = store
        self._cache = RankingCache(past_seasons)
        self._loader = CacheLoader(store, self._cache)
        self._limit = boards_limit
        self._turn = asyncio.Lock()  # one change at a time; readers never take it
        self._reading_past = asyncio.Lock()
        self.loaded = False
        self.failure: str | None = None
        """Why the last `refresh` failed; None if it succeeded."""

    # Reading.

    @property
    def boards(self) -> dict[str, BoardSettings]:
        """Settings of all boards."""
        return self._cache.boards

    @property
    def as_of(self) -> datetime | None:
        """Every score that a gateway answered 202 before this time is shown; None: not known yet."""
        as_of = self._cache.reached.as_of
        return from_micros(as_of) if as_of is not None else None

    def is_hidden(self, board: str) -> bool:
        """Return whether `board` is hidden or deleted."""
        settings = self.boards.get(board)
        return settings is None or settings.hidden

    def page(self, after: str, limit: int, *, hidden: bool = False) -> list[str]:
        """Return the names of up to `limit` boards behind `after`, in order; `hidden`: include hidden boards."""
        return self._cache.page(after, limit, hidden=hidden)

    def current(self, board: str) -> AnyRanking:
        """Return the ranking of the current season.

        Raises:
            UnknownBoard: there is no such board.
        """
        settings = self._cache.settings(board)
        cached = self._cache.find(board, current_season(settings))
        # All current rankings are in memory: one that is not there has no scores yet.
        return cached.ranking if cached is not None else SmallRanking.empty(settings.order)

    async def past(self, board: str, season: str) -> AnyRanking:
        """Return the ranking of any season; reads it from the database if it is not in memory.

        Raises:
            UnknownBoard: there is no such board.
            DatabaseUnavailable: it is not in memory and cannot be read.
        """
        settings = self._cache.settings(board)
        if season == current_season(settings):
            return self.current(board)
        async with self._reading_past:  # so that concurrent readers of one ranking read it once
            cached = self._cache.find(board, season)
            if cached is None:
                async with self._turn:  # so that no change in the meantime is missed
                    async with self._store.reading() as connection:
                        await self._loader.catch_up(connection)
                        self._cache.settings(board)  # raises if the board was deleted in the meantime
                        records = await self._store.records(connection, [(board, season)])
                        found = await self._loader.read(connection, records)
                    self._cache.put(found)
                if not found:
                    return SmallRanking.empty(settings.order)
                cached = found[0]
            self._cache.touch(board, season)
        return cached.ranking

    # Changing.

    async def refresh(self) -> None:
        """Load what other replicas committed; the first time, all current rankings.

        Raises:
            DatabaseUnavailable: nothing changed in memory.
        """
        async with self._turn:
            # The first time, and after a failure, there may be much to read.
            limit = RELOAD_SECONDS if self.failure is not None or not self.loaded else None
            try:
                async with self._store.reading(limit) as connection:
                    await self._loader.catch_up(connection)
            except DatabaseUnavailable as error:
                self.failure = str(error)
                raise
            self.failure = None
            self.loaded = True

    async def apply(self, scores: Scores, until: int | None = None) -> list[RankingChange]:
        """Apply those `scores` that were not applied before; on return they are committed and readable. Idempotent.

        `until`: microseconds since 1970; every score that a gateway answered 202 before is among `scores`, was applied
        before, or is postponed.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._loader.catch_up(connection)
                oldest = await self._store.oldest_postponed(connection)
                if oldest is not None and scores.messages:
                    await self._store.end_postponed(connection, scores.messages)
                    oldest = await self._store.oldest_postponed(connection)
                scores = await claim_new(self._store, connection, scores, self._cache.deleted)
                new_boards = {board: DEFAULTS for board in dict.fromkeys(scores.boards) if board not in self.boards}
                reached, updates = await compute_updates(
                    self._store, self._cache, self._loader, connection, scores, new_boards
                )
                if until is not None:
                    until = until if oldest is None else min(until, oldest)
                    reached = replace(reached, as_of=max(until, reached.as_of or 0))
                saving = asyncio.create_task(
                    save_updates(self._store, connection, self._cache.reached, reached, new_boards, updates)
                )
                # Snapshots are made while the database writes: both release the interpreter's lock.
                try:
                    rankings = await asyncio.to_thread(lambda: [update.next() for update in updates])
                finally:
                    await saving
            self._cache.set_boards(new_boards)
            self._cache.put(rankings)
            self._cache.reached = reached
        return [
            RankingChange(after.record.board, after.record.season, update.before, after.ranking, len(update.rows))
            for update, after in zip(updates, rankings, strict=True)
        ]

    async def postpone(self, message: tuple[str, str], accepted_at: int) -> None:
        """Keep `as_of` at or before `accepted_at` until this message is applied, or `give_up` is called. Idempotent.

        `accepted_at`: microseconds since 1970.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        await self._store.postpone(message, accepted_at, to_micros(now()))

    async def give_up(self, message: tuple[str, str]) -> None:
        """End `postpone` for a message that is dead-lettered. Idempotent.

        Raises:
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        async with self._store.writing() as connection:
            await self._store.end_postponed(connection, [message])

    def refused(self, boards: Iterable[str]) -> set[str]:
        """Return those of `boards` that would be new and exceed the limit."""
        new = [board for board in dict.fromkeys(boards) if board not in self.boards]
        return set(new[max(0, self._limit - len(self.boards)) :])

    async def configure(self, board: str, settings: BoardSettings) -> bool:
        """Set up a board; return whether it is a new one. Idempotent.

        Raises:
            BoardInUse: it has scores, which these settings would have counted differently.
            TooManyBoards: it would be new and exceed the limit.
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._loader.catch_up(connection)
                known = self.boards.get(board)
                if known == settings:
                    return False
                if known is None and len(self.boards) >= self._limit:
                    raise TooManyBoards(board)
                counts_alike = known is not None and known.model_copy(update={"hidden": settings.hidden}) == settings
                if not counts_alike and any(one.players for one in await self._store.records_of(connection, board)):
                    raise BoardInUse(board)
                reached = replace(self._cache.reached, version=self._cache.reached.version + 1)
                await self._store.save_boards(connection, {board: settings}, reached.version)
                await self._store.save_progress(connection, reached)
            self._cache.set_boards({board: settings})
            self._cache.reached = reached
        return known is None

    async def delete(self, board: str) -> None:
        """Delete a board with all its seasons. Idempotent; scores that are accepted later create it again.

        Raises:
            UnknownBoard: there is no such board, and none was deleted lately.
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._loader.catch_up(connection)
                if board not in self.boards:
                    if board in self._cache.deleted:
                        return
                    raise UnknownBoard(board)
                reached = replace(self._cache.reached, version=self._cache.reached.version + 1)
                at = await self._store.delete_board(connection, board, to_micros(now()), reached.version)
                await self._store.save_progress(connection, reached)
            self._cache.remove_boards({board: at})
            self._cache.reached = reached

    async def erase(self, board: str, player: str) -> int:
        """Erase a player from all seasons of `board`; return the number of seasons. Idempotent.

        Raises:
            UnknownBoard: there is no such board.
            DatabaseUnavailable: not committed, or commit status unknown.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._loader.catch_up(connection)
                self._cache.settings(board)
                records = {one.id: one for one in await self._store.records_of(connection, board)}
                erased = await self._store.erase(connection, list(records), player)
                if not erased:
                    return 0
                reached = replace(self._cache.reached, version=self._cache.reached.version + 1)
                after = [_without_one(records[id], reached.version) for id in erased]
                await self._store.save_records(connection, after)
                await self._store.save_progress(connection, reached)
            known = [(record, self._cache.find(board, record.season)) for record in after]
            self._cache.put(
                CachedRanking(record, cached.ranking.without(player)) for record, cached in known if cached is not None
            )
            self._cache.reached = reached
        return len(erased)


def _without_one(record: RankingRecord, version: int) -> RankingRecord:
    return replace(record, players=record.players - 1, version=version, erasures=record.erasures + 1)
