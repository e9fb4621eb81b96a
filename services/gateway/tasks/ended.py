"""Tasks that the gateway itself ends: cancelled, withdrawn, suppressed, or failed with a dead letter.

Their ends are shown live like those that a worker reports (`live.py`). The message is written to the outbox in the
commit that ends the task, so a crash loses none.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from bellhop.amqp.message import Message
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import GATEWAY
from bellhop.contracts.kinds import KINDS
from bellhop.contracts.outcomes import Outcome
from bellhop.contracts.tasks import Lane
from services.gateway.outbox.routing import NOTIFICATIONS
from services.gateway.outbox.store import Entry


def live_entries(tasks: Iterable[Mapping[str, Any]], reply: str | None = None) -> list[Entry]:
    """Return the messages that show the ends of `tasks`, rows that say when they ended.

    `reply`: why, unless a row has a reply of its own.
    """
    return [_entry(task, task.get("reply", reply)) for task in tasks if is_shown(task["owner"], task["lane"])]


def is_shown(owner: str | None, lane: str | None) -> bool:
    """Return whether the end of a task is shown live.

    A broadcast shows its own counts; a million single events would hide the rest. Without an owner no client can
    follow the event.
    """
    return lane != Lane.BULK and owner is not None


def _entry(task: Mapping[str, Any], reply: str | None) -> Entry:
    outcome = Outcome(
        task_id=task["id"],
        round=task["round"],
        attempt=task["attempt"],
        state=task["state"],
        at=datetime.fromtimestamp(task["finished_at"] / 1000, UTC),
        reply=reply,
        uncertain=bool(task["uncertain"]),
        owner=task["owner"],
        lane=task["lane"],
        to=task["recipient"],
        template=task["template"],
    )
    envelope = Envelope(type=KINDS[task["kind"]].outcome_type(outcome.state), source=GATEWAY, subject=outcome.task_id)
    body = outcome.model_dump_json(exclude_none=True).encode()
    return Entry(NOTIFICATIONS, envelope.type, Message(body, envelope))
