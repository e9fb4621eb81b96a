"""The ranking in memory: its order, its ranks, its names."""

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellhop.contracts.scores import Operator, Order
from services.leaderboard.names import Names
from services.leaderboard.ranking import Ranking
from services.leaderboard.scoring import PlayerResult, collapse, join, joined, to_keys
from services.leaderboard.small import SmallRanking, as_small

Score = tuple[str, float, int]
"""Player, score, time."""


def applied(ranking: Ranking, operator: Operator, scores: list[Score]) -> Ranking:
    """Apply `scores` in one batch, as the service does."""
    if not scores:
        return ranking
    players, values, times = zip(*scores, strict=True)
    slots = ranking.names.add(players)
    new = collapse(operator, slots, to_keys(np.array(values), ranking.order), np.array(times, np.int64))
    return ranking.with_results(join(operator, new, *ranking.held(new.slots)))


def applied_to_few(ranking: SmallRanking, operator: Operator, scores: list[Score]) -> SmallRanking:
    """The same for a small ranking."""
    sign = 1 if ranking.order is Order.ASCENDING else -1
    results: dict[str, PlayerResult] = {}
    for player, score, at in scores:
        results[player] = joined(operator, results.get(player) or ranking.result(player), (sign * score, at))
    return ranking.with_results(results)


def lines(ranking: Ranking | SmallRanking) -> list[tuple[int, int, str, float, int]]:
    return [(one.position, one.rank, one.player, one.score, one.at) for one in ranking.page(0, len(ranking))]


def model(order: Order, operator: Operator, scores: list[Score]) -> list[tuple[int, int, str, float, int]]:
    """What a ranking is, in a few slow lines."""
    sign = 1 if order is Order.ASCENDING else -1
    held: dict[str, list[tuple[float, int]]] = {}
    for player, score, at in scores:
        held.setdefault(player, []).append((score, at))
    final = []
    for player, results in held.items():
        match operator:
            case Operator.BEST:
                score, at = min(results, key=lambda result: (sign * result[0], result[1]))
            case Operator.LAST:
                score, at = max(reversed(results), key=lambda result: result[1])  # of equals the first: the later one
            case Operator.SUM:
                raise AssertionError("tests/unit/test_leaderboard_sums.py")
        final.append((sign * score, at, player, score))
    final.sort()
    keys = [one[0] for one in final]
    return [
        (position, keys.index(key) + 1, player, score, at)
        for position, (key, at, player, score) in enumerate(final, start=1)
    ]


# Few players, scores and times, so that ties of every kind are the rule.
SCORES = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cy", "dan", "eve", "a", "zed"]),
        st.integers(-3, 3).map(float),
        st.integers(0, 3),
    ),
    max_size=40,
)


@given(
    scores=SCORES,
    order=st.sampled_from(Order),
    operator=st.sampled_from([Operator.BEST, Operator.LAST]),
    shuffle=st.randoms(use_true_random=False),
    size=st.integers(1, 12),
)
def test_any_sequence_and_split_of_scores_gives_the_ranking_of_the_model(scores, order, operator, shuffle, size):
    """However scores are cut into batches, the ranking is the sorted list of the joined scores.

    For `last` the sequence counts where times are equal; for the others shuffling makes no difference.
    """
    if operator is Operator.LAST:
        shuffle.shuffle(scores)
    expected = model(order, operator, scores)
    if operator is not Operator.LAST:
        shuffle.shuffle(scores)
    batches = [scores[begin : begin + size] for begin in range(0, len(scores), size)]
    ranking = reduce(lambda sofar, batch: applied(sofar, operator, batch), batches, Ranking.empty(order))
    assert lines(ranking) == expected
    assert [ranking.rank(player) for _, _, player, _, _ in expected] == [rank for _, rank, *_ in expected]
    small = reduce(lambda sofar, batch: applied_to_few(sofar, operator, batch), batches, SmallRanking.empty(order))
    assert lines(small) == expected
    assert [small.rank(player) for _, _, player, _, _ in expected] == [rank for _, rank, *_ in expected]
    assert small.top(3) == ranking.top(3) == [player for _, _, player, _, _ in expected[:3]]


@given(scores=SCORES, order=st.sampled_from(Order), player=st.sampled_from(["ann", "bob", "nobody"]))
def test_a_ranking_is_the_same_small_and_large(scores, order, player):
    """It grows and shrinks without a change that a reader could see, and erases alike."""
    small = applied_to_few(SmallRanking.empty(order), Operator.BEST, scores)
    large = small.enlarged()
    assert lines(large) == lines(small) == lines(as_small(large))
    assert lines(large.without(player)) == lines(small.without(player))
    for count in range(3):
        assert small.around(player, count) == large.around(player, count)
    assert (small.entry(player), small.rank(player)) == (large.entry(player), large.rank(player))


@given(scores=SCORES, operator=st.sampled_from([Operator.BEST, Operator.LAST]))
def test_applying_scores_again_changes_nothing(scores, operator):
    """`best` and `last` are idempotent by themselves: a second time nothing is left to write."""
    ranking = applied(Ranking.empty(Order.DESCENDING), operator, scores)
    assert lines(applied(ranking, operator, scores)) == lines(ranking)


@given(scores=SCORES, player=st.sampled_from(["ann", "bob", "nobody"]))
def test_an_erased_player_is_nowhere(scores, player):
    """Without a player the ranking is the one that never had him."""
    ranking = applied(Ranking.empty(Order.DESCENDING), Operator.BEST, scores).without(player)
    assert lines(ranking) == model(Order.DESCENDING, Operator.BEST, [score for score in scores if score[0] != player])
    assert ranking.rank(player) is None
    assert ranking.entry(player) is None


def test_a_tie_does_not_displace_who_was_first():
    """Of equal scores the earlier stands before, and both share the rank: 1, 2, 2, 4."""
    ranking = applied(
        Ranking.empty(Order.DESCENDING),
        Operator.BEST,
        [("late", 10, 3), ("top", 20, 9), ("first", 10, 1), ("low", 1, 0)],
    )
    assert [(line[0], line[1], line[2]) for line in lines(ranking)] == [
        (1, 1, "top"), (2, 2, "first"), (3, 2, "late"), (4, 4, "low")
    ]  # fmt: skip


def test_best_keeps_score_and_time_of_one_result():
    """The time belongs to the score that counts, never to another one."""
    ranking = applied(Ranking.empty(Order.DESCENDING), Operator.BEST, [("ann", 5, 2), ("ann", 4, 1), ("ann", 5, 3)])
    assert lines(ranking) == [(1, 1, "ann", 5.0, 2)]


def test_around_is_cut_at_both_ends():
    """Neighbours are shown as far as there are any."""
    scores = [(f"p{n}", float(-n), 0) for n in range(5)]
    ranking = applied(Ranking.empty(Order.DESCENDING), Operator.BEST, scores)
    assert [line.player for line in ranking.around("p0", 2)] == ["p0", "p1", "p2"]
    assert [line.player for line in ranking.around("p3", 2)] == ["p1", "p2", "p3", "p4"]
    assert ranking.around("nobody", 2) == []


def test_the_percentile_of_the_first_is_100():
    """It counts the players who stand no better."""
    ranking = applied(Ranking.empty(Order.DESCENDING), Operator.BEST, [("a", 3, 0), ("b", 2, 0), ("c", 2, 0)])
    assert [ranking.percentile(rank) for rank in (1, 2)] == [100.0, pytest.approx(66.6667)]


def test_a_snapshot_never_changes():
    """Who reads an older snapshot sees it whole while, and after, the next is made."""
    before = applied(Ranking.empty(Order.DESCENDING), Operator.BEST, [("ann", 1, 0)])
    after = applied(before, Operator.BEST, [("ann", 2, 1), ("bob", 3, 1)])
    assert lines(before) == [(1, 1, "ann", 1.0, 0)]
    assert before.entry("bob") is None
    assert [line[2] for line in lines(after)] == ["bob", "ann"]


@given(st.lists(st.text(alphabet="abcXYZ09._:@-", min_size=1, max_size=6)))
def test_names_find_what_was_added_and_nothing_else(names):
    """A name keeps its first slot however the table grows."""
    table = Names()
    slots = [slot for name in names for slot in table.add([name]).tolist()]
    assert slots == [list(dict.fromkeys(names)).index(name) for name in names]
    assert [table[slot] for slot in slots] == names
    assert table.find("nobody at all") == -1


def test_names_survive_growth():
    """The table doubles many times on the way to 10,000 names and loses none."""
    names = [f"player-{number}" for number in range(10_000)]
    table = Names()
    for begin in range(0, len(names), 700):
        table.add(names[begin : begin + 700])
    assert [table.find(name) for name in names] == list(range(len(names)))
