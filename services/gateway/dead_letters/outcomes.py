"""Tasks whose messages are dead letters: they fail with the reason, and a replay makes them queued again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import MAX_ATTEMPT, Delivery
from bellhop.contracts.base import now
from bellhop.contracts.kinds import TaskKind, kind_of_queue
from bellhop.contracts.outcomes import Outcome, State, TaskEvent
from services.gateway.broadcasts.store import HELD, Phase
from services.gateway.dead_letters.rows import WholeDeadLetter
from services.gateway.outbox.store import now_ms
from services.gateway.tables import broadcasts, tasks
from services.gateway.tasks.progress import state_after
from services.gateway.tasks.rows import TaskRow
from services.gateway.tasks.store import locked_tasks

_OF_REACTION = ("event_id", "to", "owner", "template", "lane")


@dataclass(frozen=True, slots=True)
class _Task:
    """The task that a message is about."""

    kind: TaskKind
    id: str
    round: int | None
    """None where the message does not contain it."""
    document: Mapping[str, object]


def _task_of(queue: str, subject: str | None, body: bytes) -> _Task | None:
    """Return the task of a message on a queue of tasks, as far as the message can be read."""
    kind = kind_of_queue(queue)
    if kind is None:
        return None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        document = {}
    task_id, round_ = document.get("task_id", subject), document.get("round", 1 if "task_id" in document else None)
    if not isinstance(task_id, str):
        return None
    return _Task(kind, task_id, round_ if isinstance(round_, int) and not isinstance(round_, bool) else None, document)


async def failures(
    connection: AsyncConnection, dead_letters: Sequence[tuple[Delivery, WholeDeadLetter]]
) -> dict[str, Outcome]:
    """Return by dead letter id how the tasks of dead letters ended; `dead_letters` are deliveries with their rows."""
    found = {row.id: (_task_of(row.queue, delivery.envelope.subject, row.body), row) for delivery, row in dead_letters}
    unclear = [task.id for task, _ in found.values() if task is not None and task.round is None]
    rounds: dict[str, int] = {}
    if unclear:
        query = sa.select(tasks.c.id, tasks.c.round).where(tasks.c.id.in_(unclear))
        rounds = {row.id: row.round for row in await connection.execute(query)}
    ended = {}
    for dead_letter_id, (task, row) in found.items():
        if task is not None and (outcome := _failure(task, row, rounds)) is not None:
            ended[dead_letter_id] = outcome
    return ended


def _failure(task: _Task, row: WholeDeadLetter, rounds: dict[str, int]) -> Outcome | None:
    reason = (row.error.strip().splitlines() or ["no reason was given"])[-1]
    values: dict[str, object] = {
        "task_id": task.id,
        "round": task.round if task.round is not None else rounds.get(task.id, 1),
        "attempt": row.attempts,
        "state": State.FAILED,
        "at": now(),
        "reply": f"The message became a dead letter ({row.reason}): {reason}",
        # A message that was rejected unread was not sent; one that failed after attempts may have been.
        "uncertain": row.reason != "rejected",
    }
    origin = {name: task.document[name] for name in _OF_REACTION if name in task.document}
    if "event_id" in origin and task.round is not None:
        values |= origin | {"kind": task.kind.name}
    try:
        return Outcome.model_validate(values)
    except ValidationError:
        return None  # not one of our tasks


@dataclass(frozen=True, slots=True)
class ReplayDecision:
    """How one dead letter is replayed."""

    task_id: str | None = None
    attempt: int = 1
    due_at: int | None = None
    """None: the time of the replay."""
    over: State | None = None
    """The state of a task that changed without this message: it must not be sent again."""


async def requeue_tasks(
    connection: AsyncConnection, dead_letters: list[WholeDeadLetter], body: bytes | None
) -> dict[str, ReplayDecision]:
    """Make the tasks of dead letters queued again; return by dead letter id how each message is published.

    The round stays: the mailer's inbox then reports what it has already done, so that nothing is sent twice. The
    attempt is the next one, so that the inbox accepts it. `body` replaces the body of all of them.
    """
    named = {}
    for dead_letter in dead_letters:
        subject = orjson.loads(dead_letter.envelope)["subject"]
        if (task := _task_of(dead_letter.queue, subject, dead_letter.body if body is None else body)) is not None:
            named[dead_letter.id] = task
    ids = {task.id for task in named.values()}
    phases = await _lock_broadcasts(connection, ids)
    rows = await locked_tasks(connection, ids)
    decisions = {}
    failed: set[str] = set()
    for dead_letter in dead_letters:
        task = named.get(dead_letter.id)
        row = None if task is None else rows.get(task.id)
        if task is None or row is None:
            decisions[dead_letter.id] = ReplayDecision()
            continue
        decisions[dead_letter.id] = _decide(dead_letter, task, row, phases.get(row["broadcast_id"] or ""))
        if decisions[dead_letter.id].over is None and row["state"] == State.FAILED:
            failed.add(row["id"])
    await _queue_again(connection, [rows[task_id] for task_id in failed], phases, body)
    return decisions


async def _lock_broadcasts(connection: AsyncConnection, task_ids: set[str]) -> dict[str, Phase]:
    """Lock the broadcasts of tasks, always before the tasks; return their phases by id."""
    mine = sa.select(tasks.c.broadcast_id).where(tasks.c.id.in_(task_ids), tasks.c.broadcast_id.is_not(None))
    query = sa.select(broadcasts.c.id, broadcasts.c.state).where(broadcasts.c.id.in_(mine)).order_by(broadcasts.c.id)
    return {id_: Phase(state) for id_, state in await connection.execute(query.with_for_update())}


def _decide(dead_letter: WholeDeadLetter, task: _Task, row: TaskRow, phase: Phase | None) -> ReplayDecision:
    state = State(row["state"])
    later_round = task.round is not None and task.round != row["round"]
    stopped = phase in (Phase.CANCELLING, Phase.CANCELLED)
    if later_round or stopped or (state.final and state_after(row, TaskEvent.REPLAY) is None):
        return ReplayDecision(over=state)
    attempt = min(max(dead_letter.attempts, row["attempt"]) + 1, MAX_ATTEMPT)
    return ReplayDecision(row["id"], attempt, due_at=HELD if phase is Phase.PAUSED else None)


async def _queue_again(
    connection: AsyncConnection, failed: list[TaskRow], phases: dict[str, Phase], body: bytes | None
) -> None:
    """Make failed tasks queued, and the finished broadcasts among theirs running; a statement each for any number."""
    if not failed:
        return
    mine = tasks.c.id.in_([row["id"] for row in failed])
    values = {
        "state": State.QUEUED.value, "finished_at": None, "updated_at": now_ms(), "cancel_requested_at": None,
    }  # fmt: skip
    await connection.execute(sa.update(tasks).where(mine).values(values))
    if body is not None:
        await connection.execute(sa.update(tasks).where(mine, tasks.c.document.is_not(None)).values(document=body))
    finished = {row["broadcast_id"] for row in failed if phases.get(row["broadcast_id"] or "") is Phase.FINISHED}
    if finished:
        goes_on = {"state": Phase.RUNNING.value, "finished_at": None, "counts": None}
        await connection.execute(sa.update(broadcasts).where(broadcasts.c.id.in_(finished)).values(goes_on))
