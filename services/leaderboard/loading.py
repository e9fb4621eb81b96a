"""Load rankings from the database into the cache: what other replicas committed, and rankings of past seasons."""

import asyncio
from array import array
from collections.abc import Iterable, Iterator

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.scores import Order
from services.leaderboard.cache import CachedRanking, RankingCache
from services.leaderboard.ranking import Ranking
from services.leaderboard.scoring import PlayerResult, ResultColumns, current_season, current_seasons, to_keys
from services.leaderboard.small import SMALL, AnyRanking, SmallRanking, as_large, as_small
from services.leaderboard.store import RankingRecord, ResultRow, Store

PLAYERS_IN_STATEMENT = 20_000
"""Small rankings are read together, with up to about this many players in one statement."""


class CacheLoader:
    """Reads from the database what the cache lacks. All costs grow with what changed, not with the number of boards."""

    def __init__(self, store: Store, cache: RankingCache) -> None:
        self._store = store
        self._cache = cache

    async def catch_up(self, connection: AsyncConnection) -> None:
        """Bring the cache to the state that `connection` sees. Reads only what other replicas committed."""
        cache = self._cache
        reached = await self._store.progress(connection)
        seasons = set(current_seasons())
        records: dict[int, RankingRecord] = {}
        if seasons != cache.seasons:  # the first time, and once a day
            records = {one.id: one for one in await self._store.records_in(connection, seasons - cache.seasons)}
        since = cache.reached.version
        if reached.version == since and not records:
            cache.reached, cache.seasons = reached, seasons
            return
        deleted = await self._store.deleted_boards(connection, since)
        boards = await self._store.boards(connection, since)
        if since >= 0:
            records |= {one.id: one for one in await self._store.records_since(connection, since)}
        cache.remove_boards(deleted)
        cache.set_boards(boards)
        cache.put(await self.read(connection, [one for one in records.values() if self._is_wanted(one)]))
        cache.reached, cache.seasons = reached, seasons

    def _is_wanted(self, record: RankingRecord) -> bool:
        """Return whether the ranking belongs in memory and is not there in its current version."""
        settings = self._cache.boards.get(record.board)
        if settings is None:
            return False
        cached = self._cache.find(record.board, record.season)
        if cached is None:
            return record.season == current_season(settings)
        return cached.record.version != record.version

    async def read(self, connection: AsyncConnection, records: Iterable[RankingRecord]) -> list[CachedRanking]:
        """Return the rankings of `records`: those in memory with their new results, others read in full."""
        rankings, groups = [], _Groups()
        for record in records:
            cached = self._cache.find(record.board, record.season)
            if cached is not None and cached.record.erasures != record.erasures:
                cached = None
            order = self._cache.boards[record.board].order
            since = self._cache.reached.version if cached is not None else -1
            if record.players > SMALL:
                rankings.append(await self._read_large(connection, record, cached, order, since))
            else:
                groups.add(record, cached, since)
        for since, group in groups:
            rows = await self._store.results_of(connection, [record.id for record, _ in group], since)
            rankings += await asyncio.to_thread(self._read_small, group, rows)
        return rankings

    def _read_small(
        self, group: list[tuple[RankingRecord, CachedRanking | None]], rows: list[ResultRow]
    ) -> list[CachedRanking]:
        rows_of: dict[int, list[ResultRow]] = {}
        for row in rows:
            rows_of.setdefault(row[0], []).append(row)
        rankings = []
        for record, cached in group:
            order = self._cache.boards[record.board].order
            sign = 1.0 if order is Order.ASCENDING else -1.0
            new = {player: (sign * score + 0.0, at) for _, player, score, at in rows_of.get(record.id, ())}
            ranking = cached.ranking if cached is not None else SmallRanking.empty(order)
            rankings.append(CachedRanking(record, _with_few(ranking, new)))
        return rankings

    async def _read_large(
        self,
        connection: AsyncConnection,
        record: RankingRecord,
        cached: CachedRanking | None,
        order: Order,
        since: int,
    ) -> CachedRanking:
        ranking = Ranking.empty(order, record.players) if cached is None else as_large(cached.ranking)
        # The names of a ranking that is not in memory yet are all new.
        slots_of = ranking.names.add if cached is not None else ranking.names.add_new
        # Few long arrays that grow: many small ones would fragment the heap.
        slots, scores, at = array("i"), array("d"), array("q")
        async for page in self._store.results(connection, record.id, since):
            slots.frombytes(slots_of(page.players).tobytes())
            scores.extend(page.scores)
            at.extend(page.at)
        if slots:
            keys = to_keys(np.frombuffer(scores), order)
            results = ResultColumns(
                np.frombuffer(slots, np.int32), keys, np.frombuffer(at, np.int64), np.arange(len(slots))
            )
            ranking = await asyncio.to_thread(ranking.with_results, results)
        return CachedRanking(record, ranking)


class _Groups:
    """Small rankings, grouped for few statements: those in one group are read from the same version on."""

    def __init__(self) -> None:
        self._groups: dict[int, list[list[tuple[RankingRecord, CachedRanking | None]]]] = {}
        self._players: dict[int, int] = {}

    def add(self, record: RankingRecord, cached: CachedRanking | None, since: int) -> None:
        groups = self._groups.setdefault(since, [[]])
        self._players[since] = self._players.get(since, 0) + record.players + 10
        if self._players[since] > PLAYERS_IN_STATEMENT:
            groups.append([])
            self._players[since] = record.players
        groups[-1].append((record, cached))

    def __iter__(self) -> Iterator[tuple[int, list[tuple[RankingRecord, CachedRanking | None]]]]:
        return ((since, group) for since, groups in self._groups.items() for group in groups if group)


def _with_few(ranking: AnyRanking, new: dict[str, PlayerResult]) -> SmallRanking:
    """Return a ranking of at most `SMALL` players with new results."""
    small = as_small(ranking)
    return small.with_results(new) if new else small
