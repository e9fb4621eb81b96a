"""Boards that add up: the same scores give the same ranking, in whatever sequence and batches they come."""

from decimal import Decimal
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellhop.contracts.scores import BoardSettings, Operator, Order
from services.leaderboard import sums
from services.leaderboard.cache import CachedRanking
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import Scores
from services.leaderboard.small import AnyRanking, SmallRanking
from services.leaderboard.store import RankingRecord
from services.leaderboard.updates import held_results, updates_of

Score = tuple[str, float, int]
"""Player, score, time."""

# Decimal fractions, zeros, and numbers so large that a double has no digit left for the small ones.
VALUES = st.one_of(
    st.integers(-30, 30).map(lambda tenths: tenths / 10),
    st.sampled_from([0.0, 0.000001, -0.000001, 1e15, -1e15, 2.0**53 - 1, 1 - 2.0**53, 123456789012.345, 0.1, 0.2, 0.3]),
)
SCORES = st.lists(st.tuples(st.sampled_from(["ann", "bob", "cy"]), VALUES, st.integers(0, 5)), max_size=30)


class Board:
    """One ranking that adds up, with the rests that a database would hold."""

    def __init__(self, ranking: AnyRanking) -> None:
        self.cached = CachedRanking(RankingRecord(1, "b", "", 0, 0, 0), ranking)
        self.rests: dict[tuple[int, str], int] = {}
        self.settings = BoardSettings(operator=Operator.SUM, order=ranking.order)

    def apply(self, scores: list[Score]) -> "Board":
        players, values, times = ([list(column) for column in zip(*scores, strict=True)]) or ([], [], [])
        columns = Scores(
            [("t", "1")], np.zeros(1, np.int64), np.zeros(len(scores), np.int64), ["b"] * len(scores), players,
            np.array(values), np.array(times, np.int64), [None] * len(scores),
        )  # fmt: skip
        key, indices = ("b", ""), np.arange(len(scores))
        held, doubtful = held_results({key: self.cached}, columns, {key: indices})
        known = {one: rest for one, rest in self.rests.items() if one in doubtful}
        version = self.cached.record.version + 1
        for update in updates_of(
            {key: self.cached}, {"b": self.settings}, columns, {key: indices}, version, held, known
        ):
            self.rests |= {(1, row[1]): rest for row, rest in zip(update.rows, update.rests, strict=True)}
            self.cached = CachedRanking(update.record, update.make())
        return self

    def lines(self) -> list[tuple[int, int, str, float, int]]:
        return [(one.position, one.rank, one.player, one.score, one.at) for one in self.cached.ranking.page(0, 100)]


def model(order: Order, scores: list[Score]) -> list[tuple[int, int, str, float, int]]:
    """What such a ranking is, in exact decimals."""
    sign = 1 if order is Order.ASCENDING else -1
    final = []
    for player in {score[0] for score in scores}:
        theirs = [(Decimal(str(score)), at) for name, score, at in scores if name == player]
        changes = [at for score, at in theirs if score]
        total = float(sum(score for score, _ in theirs))
        final.append(
            (sign * total + 0.0, max(changes) if changes else min(at for _, at in theirs), player, total + 0.0)
        )
    final.sort()
    keys = [one[0] for one in final]
    return [(place, keys.index(key) + 1, player, total, at) for place, (key, at, player, total) in enumerate(final, 1)]


@pytest.mark.parametrize("empty", [SmallRanking.empty, Ranking.empty])
@given(
    scores=SCORES,
    order=st.sampled_from(Order),
    shuffle=st.randoms(use_true_random=False),
    size=st.integers(1, 12),
)
def test_any_sequence_and_split_of_scores_gives_the_exact_sums(empty, scores, order, shuffle, size):
    """Scores and times are those of exact decimal arithmetic, however the scores are shuffled and cut into batches."""
    expected = model(order, scores)
    shuffle.shuffle(scores)
    batches = [scores[begin : begin + size] for begin in range(0, len(scores), size)]
    assert reduce(Board.apply, batches, Board(empty(order))).lines() == expected


def test_zero_does_not_cost_a_place():
    """Adding nothing changes nothing, and so leaves the time at which the total was reached."""
    board = Board(SmallRanking.empty(Order.DESCENDING)).apply([("first", 10, 1), ("second", 10, 2)])
    assert board.apply([("first", 0, 3), ("first", 1e-9, 4)]).lines() == [
        (1, 1, "first", 10, 1),
        (2, 1, "second", 10, 2),
    ]


@given(score=VALUES, at=st.integers(0, 5))
def test_what_is_shown_and_stored_tells_the_total(score, at):
    """A total comes back from its double and its rest, and from the double alone where that is said."""
    total = reduce(lambda so_far, _: sums.add(so_far, score, at), range(7), None)
    held, rest = sums.shown(total)
    assert sums.total_of(held, rest) == total
    if sums.is_exact(held):
        assert rest == 0


def test_a_board_of_sums_grows_beyond_the_small_form():
    """More players than a small ranking holds, one batch at a time."""
    board = Board(SmallRanking.empty(Order.DESCENDING))
    for number in range(3):
        board.apply([(f"p{n}", n / 10, number) for n in range(100 * number, 100 * number + 100)])
    assert isinstance(board.cached.ranking, Ranking)
    assert board.cached.record.players == len(board.cached.ranking) == 300
    assert board.cached.ranking.result("p7") == (-0.7, 0)
