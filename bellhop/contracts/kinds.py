"""The table of kinds of tasks. Code that handles tasks of all kinds reads this table and names no kind itself.

A new kind is one entry here, a contract of its task, a route of the gateway that accepts it, and a worker.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bellhop.contracts.addresses import canonical
from bellhop.contracts.tasks import Lane


@dataclass(frozen=True, slots=True)
class TaskKind:
    """One kind of task."""

    name: str
    """Stored with each task; also the first word of the outcomes' types and routing keys."""
    queues: Mapping[Lane, str]
    """The work queue of each lane, which is also its routing key."""
    cancel_queue: str
    requested: str
    """The type of the message that asks for a task."""
    cancelled: str
    """The type of the message that asks to cancel a task."""
    read_scope: str
    """Of keys that may see tasks of this kind."""
    act_scope: str
    """Of keys that may make, cancel and retry tasks of this kind."""
    address: Callable[[str], str] = str
    """Returns the canonical spelling of a recipient, as the suppression list has it."""

    @property
    def work_queues(self) -> tuple[str, ...]:
        """Return the queues of all lanes, then the one of cancels: what a worker of this kind consumes."""
        return (*self.queues.values(), self.cancel_queue)

    def outcome_type(self, state: str) -> str:
        """Return the type of the outcome that reports `state`."""
        return f"{self.name}.{state}"

    def outcome_key(self, lane: str | None, state: str) -> str:
        """Return the routing key of an outcome on the exchange `outcomes`."""
        return f"{self.name}.{lane or Lane.NORMAL.value}.{state}"


MAIL = TaskKind(
    name="mail",
    queues={lane: f"mail.{lane.value}" for lane in Lane},
    cancel_queue="mail.cancel",
    requested="mail.requested",
    cancelled="mail.cancelled",
    read_scope="mail:read",
    act_scope="mail:send",
    address=canonical,
)

KINDS: dict[str, TaskKind] = {MAIL.name: MAIL}
"""By name."""


def kind_of_queue(queue: str) -> TaskKind | None:
    """Return the kind whose tasks lie on this work queue; None where it holds no tasks."""
    return next((kind for kind in KINDS.values() if queue in kind.queues.values()), None)
