"""The row of a new task, and the messages to its worker: for any kind."""

from collections.abc import Mapping
from typing import Any, Literal

from bellhop.amqp.message import Message
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import GATEWAY
from bellhop.contracts.kinds import KINDS, TaskKind
from bellhop.contracts.outcomes import State
from bellhop.contracts.tasks import CancelTask, Lane
from services.gateway.outbox.store import Entry
from services.gateway.tasks.rows import TaskRow


def new_task(
    kind: TaskKind, document: Mapping[str, Any], packed: bytes, *, created_at: int, send_at: int | None = None
) -> TaskRow:
    """Return the row of a new task; `document` is the task's contract as JSON, and `packed` the same as bytes.

    Times are milliseconds since 1970.
    """
    return {
        "id": document["task_id"],
        "kind": kind.name,
        "owner": document["owner"],
        "state": (State.SCHEDULED if send_at else State.QUEUED).value,
        "round": document.get("round", 1),
        "attempt": 0,
        "lane": document.get("lane", Lane.NORMAL.value),
        "recipient": document["to"],
        "address": kind.address(document["to"]),
        "template": document.get("template"),
        "event_id": None,
        "document": packed,
        "uncertain": False,
        "created_at": created_at,
        "updated_at": created_at,
        "send_at": send_at,
        "finished_at": None,
    }


def request_entry(
    kind: TaskKind,
    document: Mapping[str, Any],
    packed: bytes,
    *,
    due_at: int = 0,
    traceparent: str | None = None,
    attempt: int = 1,
) -> Entry:
    """Return the message that asks the worker for the task of this document."""
    task_id = document["task_id"]
    envelope = Envelope(type=kind.requested, source=GATEWAY, subject=task_id, traceparent=traceparent)
    queue = kind.queues[Lane(document.get("lane", Lane.NORMAL))]
    return Entry("work", queue, Message(packed, envelope, attempt), task_id, due_at, envelope.id)


def cancel_entry(
    kind: str,
    task_id: str,
    round_: int,
    *,
    state: Literal["cancelled", "suppressed"] = "cancelled",
    reason: str | None = None,
) -> Entry:
    """Return the message that asks the worker not to begin, or not to try again, a round of a task.

    `kind` is the name of the task's kind. The task then ends with `state` and `reason`.
    """
    request = CancelTask(task_id=task_id, round=round_, state=state, reason=reason)
    envelope = Envelope(type=KINDS[kind].cancelled, source=GATEWAY, subject=task_id)
    body = request.model_dump_json(exclude_none=True).encode()
    return Entry("work", KINDS[kind].cancel_queue, Message(body, envelope))
