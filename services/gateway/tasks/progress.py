"""How outcomes change the state of a task, in any order: decided by the table of transitions."""

from collections.abc import Mapping
from typing import Any

from bellhop.contracts.outcomes import FINAL, TRANSITIONS, Outcome, State, TaskEvent
from services.gateway.outbox.store import to_ms
from services.gateway.tasks.rows import AttemptRow, TaskMove

FINAL_STATES = [state.value for state in FINAL]

# Of two reports of one attempt the final one stays.
KEEP_FINAL = (
    "(task_id, round, attempt) DO UPDATE SET state = excluded.state, at = excluded.at, code = excluded.code,"
    " enhanced = excluded.enhanced, reply = excluded.reply, relay = excluded.relay, retry_at = excluded.retry_at,"
    " uncertain = excluded.uncertain"
    f" WHERE attempts.state NOT IN ({', '.join(repr(state) for state in FINAL_STATES)})"
)


def state_after(place: Mapping[str, Any], event: TaskEvent) -> State | None:
    """Return the state to which `event` moves a task; None where it changes nothing."""
    return TRANSITIONS.get((State(place["state"]), event))


def next_state(place: Mapping[str, Any], outcome: Outcome) -> State | None:
    """Return the state to which `outcome` moves a task at `place` (round, attempt, state); None: it stays there.

    Outcomes are ordered: first by the round, in a round by the attempt, and a final state ends its round. So they may
    come late, twice and in any order.
    """
    if outcome.round < place["round"]:
        return None
    event = TaskEvent(outcome.state.value)
    if outcome.round > place["round"]:  # a round begins queued
        return TRANSITIONS.get((State.QUEUED, event), TRANSITIONS.get((None, event)))
    if outcome.attempt <= place["attempt"] and not outcome.state.final:
        return None
    return state_after(place, event)


def moved(place: Mapping[str, Any], outcome: Outcome, state: State) -> TaskMove:
    """Return what changes in the row of a task that `outcome` moves to `state`."""
    at = to_ms(outcome.at)
    return {
        "id": place["id"],
        "round": outcome.round,
        "attempt": outcome.attempt,
        "state": state.value,
        "uncertain": place["uncertain"] or outcome.uncertain,
        "updated_at": at,
        "finished_at": at if state.final else None,
    }


def attempt_row(outcome: Outcome) -> AttemptRow:
    """Return the row of an attempt."""
    return {
        "task_id": outcome.task_id,
        "round": outcome.round,
        "attempt": outcome.attempt,
        "state": outcome.state.value,
        "at": to_ms(outcome.at),
        "code": outcome.code,
        "enhanced": outcome.enhanced,
        "reply": outcome.reply,
        "relay": outcome.relay,
        "retry_at": to_ms(outcome.retry_at) if outcome.retry_at else None,
        "uncertain": outcome.uncertain,
    }


def has_history(outcome: Outcome) -> bool:
    """Return whether an outcome belongs in the history: an attempt, or the reason why none was made."""
    return outcome.attempt > 0 or outcome.reply is not None
