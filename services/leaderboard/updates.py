"""What scores change in rankings: pure functions, from rankings and scores to rows and the next snapshots."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bellhop.contracts.scores import BoardSettings, Operator, Order
from services.leaderboard import sums
from services.leaderboard.cache import CachedRanking, Key
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import Scores
from services.leaderboard.scoring import PlayerResult, ResultColumns, collapse, join, joined, to_keys
from services.leaderboard.small import SMALL, AnyRanking, SmallRanking, as_large, as_small
from services.leaderboard.store import RankingRecord, Row

HeldResults = dict[int, dict[str, PlayerResult | None]]
"""By id of the ranking and by player: the result before the update, or None."""


@dataclass(frozen=True, slots=True)
class Update:
    """What scores change in one ranking."""

    before: AnyRanking
    record: RankingRecord
    """After the update."""
    rows: list[Row]
    """Changed results."""
    make: Callable[[], AnyRanking]
    """Returns the next snapshot."""
    rests: list[int] = field(default_factory=list)
    """Rests of the totals in `rows`, on a board that adds up."""

    def next(self) -> CachedRanking:
        """Return the ranking after the update."""
        ranking = self.make()
        if isinstance(ranking, Ranking) and len(ranking) <= SMALL:
            ranking = as_small(ranking)
        return CachedRanking(self.record, ranking)


def by_board(boards: list[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Return each board with the indices of its scores."""
    names = list(dict.fromkeys(boards))
    if len(names) <= 1:
        return [(name, np.arange(len(boards))) for name in names]
    numbers = {name: number for number, name in enumerate(names)}
    number = np.array([numbers[board] for board in boards])
    sequence = np.argsort(number, kind="stable")
    edges = np.flatnonzero(np.diff(number[sequence])) + 1
    return list(zip(names, np.split(sequence, edges), strict=True))


def held_results(
    rankings: dict[Key, CachedRanking], scores: Scores, parts: dict[Key, NDArray[np.intp]]
) -> tuple[HeldResults, list[tuple[int, str]]]:
    """Return the results of the players of `scores`, and the (ranking, player) pairs whose rest must be read."""
    held: HeldResults = {}
    incomplete = []
    for key, cached in rankings.items():
        indices = parts[key]
        id_, result = cached.record.id, cached.ranking.result
        held[id_] = {player: result(player) for player in {scores.players[index] for index in indices.tolist()}}
        incomplete += [(id_, player) for player, one in held[id_].items() if one is not None and not sums.is_exact(one)]
    return held, incomplete


def updates_of(
    rankings: dict[Key, CachedRanking],
    settings: dict[str, BoardSettings],
    scores: Scores,
    parts: dict[Key, NDArray[np.intp]],
    version: int,
    held: HeldResults,
    rests: dict[tuple[int, str], int],
) -> list[Update]:
    """Return what `scores` change; rankings that do not change have no update.

    Args:
        rankings: the rankings before the update.
        settings: of their boards.
        scores: the scores to apply.
        parts: the indices of the scores of each ranking.
        version: the version of this update.
        held: results before the update, on boards that add up.
        rests: the rests of those results that are not 0.
    """
    values: list[float] = []
    at: list[int] = []
    updates = []
    for key, indices in parts.items():
        cached = rankings[key]
        ranking = cached.ranking
        adds = settings[key[0]].operator is Operator.SUM
        if adds or (isinstance(ranking, SmallRanking) and len(ranking) + len(indices) <= SMALL):
            if not values:  # once for all rankings: reading single numbers from an array is slow
                values, at = scores.scores.tolist(), scores.at.tolist()
            few = [(scores.players[index], values[index], at[index]) for index in indices.tolist()]
            if adds:
                update = _update_sums(cached, settings[key[0]], few, version, held[cached.record.id], rests)
            else:
                update = _update_small(cached.record, as_small(ranking), settings[key[0]], few, version)
        else:
            update = _update_large(cached.record, as_large(ranking), settings[key[0]], scores, indices, version)
        if update.rows:
            updates.append(update)
    return updates


def _update_large(
    record: RankingRecord,
    ranking: Ranking,
    settings: BoardSettings,
    scores: Scores,
    indices: NDArray[np.intp],
    version: int,
) -> Update:
    players = scores.players
    if len(indices) != len(players):
        players = [players[index] for index in indices.tolist()]
    slots = ranking.names.add(players)
    keys = to_keys(scores.scores[indices], settings.order)
    collapsed = collapse(settings.operator, slots, keys, scores.at[indices])
    known, held_keys, held_at = ranking.held(collapsed.slots)
    results = join(settings.operator, collapsed, known, held_keys, held_at)
    newcomers = len(results.slots) - int(ranking.known(results.slots).sum())
    names = [players[index] for index in results.example.tolist()]
    values = to_keys(results.keys, settings.order).tolist()
    at = results.at.tolist()
    in_order = sorted(range(len(names)), key=names.__getitem__)
    rows = [(record.id, names[index], values[index], at[index], version) for index in in_order]
    return Update(ranking, _with_more(record, newcomers, version), rows, partial(ranking.with_results, results))


def _update_small(
    record: RankingRecord,
    ranking: SmallRanking,
    settings: BoardSettings,
    scores: list[tuple[str, float, int]],
    version: int,
) -> Update:
    sign = 1.0 if settings.order is Order.ASCENDING else -1.0
    results: dict[str, PlayerResult] = {}
    newcomers = 0
    for player, score, at in scores:
        held = results.get(player) or ranking.result(player)
        result = joined(settings.operator, held, (sign * score + 0.0, at))
        if result != held:
            newcomers += held is None
            results[player] = result
    rows = [(record.id, player, sign * key + 0.0, at, version) for player, (key, at) in sorted(results.items())]
    return Update(ranking, _with_more(record, newcomers, version), rows, partial(ranking.with_results, results))


def _update_sums(
    cached: CachedRanking,
    settings: BoardSettings,
    scores: list[tuple[str, float, int]],
    version: int,
    held: dict[str, PlayerResult | None],
    rests: dict[tuple[int, str], int],
) -> Update:
    record, sign = cached.record, 1.0 if settings.order is Order.ASCENDING else -1.0
    totals = {
        player: sums.total_of(one, rests.get((record.id, player), 0)) for player, one in held.items() if one is not None
    }
    before = dict(totals)
    for player, score, at in scores:
        totals[player] = sums.add(totals.get(player), sign * score, at)
    changed = {player: sums.shown(total) for player, total in totals.items() if total != before.get(player)}
    names = sorted(changed)
    rows = [(record.id, name, sign * changed[name][0][0] + 0.0, changed[name][0][1], version) for name in names]
    results = {name: (changed[name][0][0] + 0.0, changed[name][0][1]) for name in names}
    newcomers = sum(name not in before for name in names)
    make = partial(_with_results, cached.ranking, results)
    rests_of_rows = [changed[name][1] for name in names]
    return Update(cached.ranking, _with_more(record, newcomers, version), rows, make, rests_of_rows)


def _with_results(ranking: AnyRanking, results: dict[str, PlayerResult]) -> AnyRanking:
    if isinstance(ranking, SmallRanking) and len(ranking) + len(results) <= SMALL:
        return ranking.with_results(results)
    large = as_large(ranking)
    slots = large.names.add(list(results))
    keys = np.array([key for key, _ in results.values()], np.float64)
    at = np.array([moment for _, moment in results.values()], np.int64)
    return large.with_results(ResultColumns(slots, keys, at, np.arange(len(slots))))


def _with_more(record: RankingRecord, newcomers: int, version: int) -> RankingRecord:
    # Not `replace`, which takes several times as long.
    return RankingRecord(record.id, record.board, record.season, record.players + newcomers, version, record.erasures)
