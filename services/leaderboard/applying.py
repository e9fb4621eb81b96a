"""The steps of one transaction that applies scores: claim them, compute the updates, save the updates."""

import asyncio
from collections import ChainMap
from dataclasses import replace

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import now
from bellhop.contracts.scores import BoardSettings, Operator
from services.leaderboard import metrics
from services.leaderboard.cache import CachedRanking, RankingCache
from services.leaderboard.loading import CacheLoader
from services.leaderboard.scores import Scores
from services.leaderboard.scoring import split_by_season, to_micros
from services.leaderboard.small import SmallRanking
from services.leaderboard.store import RankingRecord, Reached, Store
from services.leaderboard.updates import Update, by_board, held_results, updates_of


async def claim_new(store: Store, connection: AsyncConnection, scores: Scores, deleted: dict[str, int]) -> Scores:
    """Note messages and scores with an id as applied, and return the scores that were not applied before.

    `deleted`: times at which boards were deleted, in microseconds since 1970; scores accepted before are left out.
    """
    if not len(scores):
        return scores
    at = to_micros(now())
    new = await store.claim_messages(connection, scores.messages, at)
    # Each claim is used once: a second copy in the same batch does not count.
    fresh = np.array([_take(new, message) for message in scores.messages])
    scores = _without_late(scores.only(fresh[scores.message]), deleted)
    named = [(index, id) for index, id in enumerate(scores.ids) if id is not None]
    if not named:
        return scores
    new = await store.claim_scores(connection, [(scores.boards[index], id) for index, id in named], at)
    counts = np.ones(len(scores), np.bool_)
    for index, id in named:
        counts[index] = _take(new, (scores.boards[index], id))
    return scores.only(counts)


async def compute_updates(
    store: Store,
    cache: RankingCache,
    loader: CacheLoader,
    connection: AsyncConnection,
    scores: Scores,
    new_boards: dict[str, BoardSettings],
) -> tuple[Reached, list[Update]]:
    """Return what `scores` change, and the state of the database after that. New seasons get a ranking."""
    boards = ChainMap(new_boards, cache.boards)
    parts = {
        (board, season): indices[chosen]
        for board, indices in by_board(scores.boards)
        for season, chosen in split_by_season(scores.at[indices], boards[board].season).items()
    }
    rankings = {key: cached for key in parts if (cached := cache.find(*key)) is not None}
    unknown = [key for key in parts if key not in rankings]
    records = await store.records(connection, [key for key in unknown if key[0] not in new_boards])
    rankings |= {(one.record.board, one.record.season): one for one in await loader.read(connection, records)}
    reached = replace(cache.reached, version=cache.reached.version + 1)
    for board, season in unknown:
        if (board, season) not in rankings:
            reached = replace(reached, last_ranking=reached.last_ranking + 1)
            record = RankingRecord(reached.last_ranking, board, season, players=0, version=0, erasures=0)
            rankings[board, season] = CachedRanking(record, SmallRanking.empty(boards[board].order))
    settings = {board: boards[board] for board, _ in parts}
    sums = {key: rankings[key] for key in parts if settings[key[0]].operator is Operator.SUM}
    held, incomplete = await asyncio.to_thread(held_results, sums, scores, parts)
    rests = await store.rests(connection, incomplete)
    updates = await asyncio.to_thread(updates_of, rankings, settings, scores, parts, reached.version, held, rests)
    return (reached if updates else cache.reached), updates


async def save_updates(
    store: Store,
    connection: AsyncConnection,
    previous: Reached,
    reached: Reached,
    new_boards: dict[str, BoardSettings],
    updates: list[Update],
) -> None:
    """Write boards, rankings, results and progress; nothing if there are no updates and `reached` is `previous`."""
    if not updates and reached == previous:
        return
    if updates:
        await store.save_boards(connection, new_boards, reached.version)
        await store.save_records(connection, [update.record for update in updates])
        rows = [row for update in updates if not update.rests for row in update.rows]
        await store.save_results(connection, rows)
        totals = [
            (*row, rest)
            for update in updates
            if update.rests
            for row, rest in zip(update.rows, update.rests, strict=True)
        ]
        await store.save_sums(connection, totals)
    await store.save_progress(connection, reached)


def _without_late(scores: Scores, deleted: dict[str, int]) -> Scores:
    """Leave out scores that were accepted before their board was deleted."""
    deleted = {board: at for board in set(scores.boards) if (at := deleted.get(board)) is not None}
    if not deleted:
        return scores
    accepted = scores.accepted[scores.message].tolist()
    counts = [at > deleted.get(board, -1) for board, at in zip(scores.boards, accepted, strict=True)]
    metrics.LATE.inc(counts.count(False))
    return scores.only(np.array(counts, np.bool_))


def _take(keys: set[tuple[str, str]], key: tuple[str, str]) -> bool:
    if key in keys:
        keys.remove(key)
        return True
    return False
