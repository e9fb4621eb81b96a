"""The rule by which outcomes move a task, whatever their order."""

from datetime import UTC, datetime
from itertools import permutations
from typing import Any

import pytest

from bellhop.contracts.outcomes import Outcome, State
from services.gateway.tasks.progress import next_state

AT = datetime(2026, 1, 1, tzinfo=UTC)


def outcome(state: State, attempt: int = 1, round_: int = 1) -> Outcome:
    return Outcome(task_id="t", round=round_, attempt=attempt, state=state, at=AT)


def end(outcomes: tuple[Outcome, ...]) -> tuple[int, str]:
    place: dict[str, Any] = {"round": 1, "attempt": 0, "state": State.QUEUED}
    for each in outcomes:
        if (state := next_state(place, each)) is not None:
            place = {"round": each.round, "attempt": each.attempt, "state": state.value}
    return place["round"], place["state"]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([outcome(State.RETRYING, 1), outcome(State.RETRYING, 2), outcome(State.SENT, 3)], (1, "sent")),
        ([outcome(State.QUEUED, 0), outcome(State.RETRYING, 1), outcome(State.RETRYING, 2)], (1, "retrying")),
        ([outcome(State.FAILED, 1), outcome(State.RETRYING, 1, 2), outcome(State.SENT, 2, 2)], (2, "sent")),
        ([outcome(State.SENT, 1), outcome(State.QUEUED, 0, 2)], (2, "queued")),
        ([outcome(State.RETRYING, 1), outcome(State.CANCELLED, 0)], (1, "cancelled")),
    ],
)
def test_any_order_and_any_repetition_end_at_the_furthest_outcome(
    outcomes: list[Outcome], expected: tuple[int, str]
) -> None:
    """However outcomes are shuffled and doubled, the task ends in the same place."""
    for order in permutations(outcomes):
        assert end(order) == expected
        assert end(order + order) == expected
