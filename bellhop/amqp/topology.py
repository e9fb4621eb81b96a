"""Every exchange, queue and binding in one table, rendered as RabbitMQ definitions.

A queue's arguments hold only what can never change (type, single active consumer). Limits, dead lettering and TTLs are
policies, so that an operator can change them on a running broker and no declaration fails with 406
(https://www.rabbitmq.com/docs/parameters#policies). Services declare nothing: a deploy step applies this table.
"""

import base64
import hashlib
import os
import re
from dataclasses import dataclass, field
from typing import Any

from bellhop import catalog
from bellhop.amqp.retry import RETRY_QUEUES
from bellhop.contracts.kinds import KINDS
from bellhop.contracts.reactions import QUEUE as ANNOUNCEMENTS

Definitions = dict[str, Any]

DELIVERY_LIMIT = 20
"""The broker dead-letters a message after this many deliveries that were not acked: its consumer crashed each time."""

# RabbitMQ 4 drops a message after 20 deliveries if no limit is set, and 3.x refuses -1: a huge number works on both.
NO_DELIVERY_LIMIT = 1_000_000_000

WEEK_MS = 7 * 24 * 3600 * 1000

VERSION = 2
"""Version of the table: from 2 on, a confirm means that the required queue has the message."""

PROPERTY = "bellhop_topology"
"""Client property of our connections: the version of the table that the process publishes by."""


@dataclass(frozen=True, slots=True)
class ExchangeDefinition:
    """A durable exchange."""

    name: str
    type: str
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueueDefinition:
    """A durable queue."""

    name: str
    type: str = "quorum"
    single_active_consumer: bool = False
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Binding:
    """From an exchange to a queue, or to another exchange."""

    source: str
    destination: str
    key: str = ""
    to_exchange: bool = False


@dataclass(frozen=True, slots=True)
class Rights:
    """Permissions of one user: patterns for configure, write and read (https://www.rabbitmq.com/docs/access-control)."""

    write: str
    read: str
    configure: str = "^$"
    tags: str = ""


def _work(limit: int = 2_000_000) -> dict[str, Any]:
    """A full queue nacks publishes; a dead-lettered message leaves the queue only when its target has confirmed it."""
    return {
        "max-length": limit,
        "overflow": "reject-publish",
        "dead-letter-exchange": "dead",
        "dead-letter-strategy": "at-least-once",
        "delivery-limit": DELIVERY_LIMIT,
    }


EXCHANGES = (
    # Copies, for queues that clients bind. Never an alternate exchange: see the decision on required queues.
    ExchangeDefinition("events", "topic"),
    # Required messages. Only our queue is bound to each of these, so a confirm means that this queue has the message.
    ExchangeDefinition("notifications", "fanout"),
    ExchangeDefinition("work", "direct"),
    ExchangeDefinition("outcomes", "topic"),
    ExchangeDefinition("dead", "fanout"),
    ExchangeDefinition("unrouted", "fanout"),
    *(ExchangeDefinition(retry_queue.name, "fanout") for retry_queue in RETRY_QUEUES),
)

WORK_QUEUES = (
    *(QueueDefinition(queue, policy=_work()) for kind in KINDS.values() for queue in kind.work_queues),
    QueueDefinition("mailer.reactions", policy=_work()),
    QueueDefinition("leaderboard.scores", single_active_consumer=True, policy=_work()),
    QueueDefinition("gateway.outcomes", policy=_work()),
    QueueDefinition(ANNOUNCEMENTS, policy=_work()),
)

QUEUES = (
    *WORK_QUEUES,
    *(
        QueueDefinition(
            retry_queue.name,
            policy={
                "message-ttl": retry_queue.seconds * 1000,
                "max-length": 2_000_000,
                "overflow": "reject-publish",
                "dead-letter-exchange": "work",
                "dead-letter-strategy": "at-least-once",
            },
        )
        for retry_queue in RETRY_QUEUES
    ),
    QueueDefinition(
        "dead-letters",
        policy={"max-length": 2_000_000, "overflow": "reject-publish", "delivery-limit": NO_DELIVERY_LIMIT},
    ),
    QueueDefinition(
        "unrouted",
        policy={
            "message-ttl": WEEK_MS,
            "max-length": 100_000,
            "overflow": "drop-head",
            "delivery-limit": NO_DELIVERY_LIMIT,
        },
    ),
    QueueDefinition(
        "notifier.log",
        type="stream",
        policy={"max-age": "1D", "max-length-bytes": 2_000_000_000, "stream-max-segment-size-bytes": 50_000_000},
    ),
)

BINDINGS = (
    Binding("notifications", "notifier.log"),
    Binding("outcomes", "gateway.outcomes", "#"),
    # Every consumed queue by its own name: retry queues and replays publish to `work`.
    *(Binding("work", queue.name, queue.name) for queue in WORK_QUEUES),
    *(Binding(retry_queue.name, retry_queue.name) for retry_queue in RETRY_QUEUES),
    Binding("dead", "dead-letters"),
    Binding("unrouted", "unrouted"),
)

_RETRY_AND_DEAD = r"retry\..+|dead"


def _rights(service: catalog.CatalogEntry) -> Rights:
    write = [re.escape(name) for name in service.publishes]
    if {queue.name for queue in WORK_QUEUES} & set(service.queues):
        write.append(_RETRY_AND_DEAD)
    return Rights(write=_any_of(write), read=_any_of([re.escape(name) for name in service.queues]), tags=service.tags)


def _any_of(patterns: list[str]) -> str:
    return f"^({'|'.join(patterns)})$" if patterns else "^$"


RIGHTS = {service.name: _rights(service) for service in catalog.SERVICES}


def definitions() -> Definitions:
    """Return the table as RabbitMQ definitions, without virtual host, users or permissions."""
    return {
        "exchanges": [
            {"name": one.name, "type": one.type, "durable": True, "auto_delete": False, "internal": False,
             "arguments": {}}
            for one in EXCHANGES
        ],
        "queues": [
            {"name": one.name, "durable": True, "auto_delete": False, "arguments": _arguments(one)} for one in QUEUES
        ],
        "bindings": [
            {"source": one.source, "destination": one.destination, "routing_key": one.key, "arguments": {},
             "destination_type": "exchange" if one.to_exchange else "queue"}
            for one in BINDINGS
        ],
        "policies": [
            *(_policy(one.name, "exchanges", one.policy) for one in EXCHANGES if one.policy),
            *(_policy(one.name, "queues", one.policy) for one in QUEUES if one.policy),
        ],
    }  # fmt: skip


def _policy(name: str, kind: str, definition: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"bellhop.{name}",
        "pattern": f"^{re.escape(name)}$",
        "priority": 0,
        "apply-to": kind,
        "definition": definition,
    }


def _arguments(queue: QueueDefinition) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x-queue-type": queue.type}
    if queue.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return arguments


def boot_definitions(passwords: dict[str, str], *, vhost: str = "/") -> Definitions:
    """Return the definitions that a new broker loads at boot: the table, one user for each service, and no `guest`.

    `passwords` maps the users of `RIGHTS`, and `deploy` (an administrator), to their passwords.
    """
    table = definitions()
    for items in table.values():
        for item in items:
            item["vhost"] = vhost
    rights = RIGHTS | {"deploy": Rights(configure=".*", write=".*", read=".*", tags="administrator")}
    return {
        "vhosts": [{"name": vhost}],
        "users": [
            {"name": name, "password_hash": password_hash(password), "tags": rights[name].tags,
             "hashing_algorithm": "rabbit_password_hashing_sha256"}
            for name, password in passwords.items()
        ],
        "permissions": [
            {"user": name, "vhost": vhost, "configure": rights[name].configure, "write": rights[name].write,
             "read": rights[name].read}
            for name in passwords
        ],
        **table,
    }  # fmt: skip


def password_hash(password: str, salt: bytes | None = None) -> str:
    """Return RabbitMQ's salted SHA-256 (https://www.rabbitmq.com/docs/passwords#computing-password-hash).

    `salt`: 4 bytes; None: random ones.
    """
    salt = salt or os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class TopologyError(Exception):
    """The broker refused the topology, or did not answer."""
