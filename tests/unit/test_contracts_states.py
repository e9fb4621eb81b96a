"""The states of a task are one machine, and the pages show that machine."""

import re
from pathlib import Path

from bellhop.contracts.outcomes import FINAL, TRANSITIONS, State, TaskEvent

DOCS = Path(__file__).parents[2] / "docs"


def test_every_state_can_be_reached() -> None:
    """From nothing, by events of the table."""
    reached: set[State | None] = {None}
    while more := {to for (start, _), to in TRANSITIONS.items() if start in reached} - reached:
        reached |= more
    assert reached - {None} == set(State)


def test_every_event_changes_some_state() -> None:
    """An event that changes nothing would be a word without a use."""
    assert {event for _, event in TRANSITIONS} == set(TaskEvent)


def test_only_a_request_changes_a_final_state() -> None:
    """A late outcome does not. Every other state can still end in every final state."""
    requests = {TaskEvent.RETRY, TaskEvent.REPLAY}
    for state in State:
        events = {event for start, event in TRANSITIONS if start is state}
        if state in FINAL:
            assert events <= requests
        else:
            assert events >= {TaskEvent(final.value) for final in FINAL}
            assert not events & requests


def test_the_architecture_draws_every_transition() -> None:
    """The picture and the table are the same."""
    (picture,) = re.findall(r"stateDiagram-v2\n(.*?)```", (DOCS / "architecture.md").read_text(), re.S)
    drawn = set()
    for start, end, events in re.findall(r"^ *(\S+) --> (\w+): (.+)$", picture, re.M):
        before = None if start == "[*]" else State(start)
        drawn |= {(before, TaskEvent(event), State(end)) for event in events.split(", ")}
    assert drawn == {(start, event, end) for (start, event), end in TRANSITIONS.items()}


def test_the_page_of_the_interface_explains_every_state_and_no_other() -> None:
    """A state that never occurs is not documented, and one that occurs is."""
    page = (DOCS / "api.md").read_text()
    (table,) = re.findall(r"\| state \| meaning \|\n\|---\|---\|\n(.*?)\n\n", page, re.S)
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(names) == sorted(state.value for state in State)
