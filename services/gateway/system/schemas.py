"""The answer about the whole system."""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp


class OldestAnswer(TypedDict):
    """How long the oldest queued task of a lane has waited."""

    since: Timestamp
    seconds: float


class OutboxAnswer(TypedDict):
    """The messages that wait for RabbitMQ."""

    waiting: int
    failure: Annotated[str | None, Field(description="why nothing is published")]


class QueueAnswer(TypedDict):
    """One queue."""

    name: str
    type: str | None
    state: str | None
    consumers: int
    ready: int
    unacked: int
    published_per_second: float
    delivered_per_second: float


class ReplicaAnswer(TypedDict):
    """One replica of a service."""

    service: str
    instance: str
    connections: Annotated[dict[str, str | None], Field(description="their states by purpose")]
    since: Annotated[int | None, Field(description="when the first of them was opened, in milliseconds since 1970")]


class NodeAnswer(TypedDict):
    """One node of RabbitMQ."""

    name: str
    running: bool


class BrokerAnswer(TypedDict):
    """The state of RabbitMQ."""

    queues: list[QueueAnswer]
    services: list[ReplicaAnswer]
    alarms: list[str]
    nodes: list[NodeAnswer]


class UnknownBrokerAnswer(TypedDict):
    """Why the state of RabbitMQ is unknown."""

    unknown: str


class SystemAnswer(TypedDict):
    """The state of the system."""

    at: Timestamp
    tasks: Annotated[dict[str, int], Field(description="numbers by state")]
    oldest_queued_task: Annotated[dict[str, OldestAnswer], Field(description="by lane")]
    outbox: OutboxAnswer
    dead_letters: int
    unrouted: int
    reacts_to: Annotated[list[str], Field(description="event types that templates name")]
    broker: BrokerAnswer | UnknownBrokerAnswer
