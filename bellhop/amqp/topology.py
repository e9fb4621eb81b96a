"""Every exchange, queue and binding, in one table, and how it reaches a broker.

A queue's arguments hold only what can never change (its type, single active consumer); limits, dead lettering and
times are policies, so that an operator can change them live and no redeclaration ever fails with 406
(https://www.rabbitmq.com/docs/parameters#policies). Services declare nothing: a deploy step applies this table.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from bellhop.amqp.retry import LADDER
from bellhop.contracts.mail import Lane

Definitions = dict[str, Any]

DELIVERY_LIMIT = 20
"""A message that took its consumer down so often is dead-lettered by the broker itself."""

# RabbitMQ 4 drops after 20 deliveries where no limit is set, and 3.x refuses -1: "for ever" on both is a huge number.
NO_DELIVERY_LIMIT = 1_000_000_000

WEEK_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable exchange."""

    name: str
    type: str
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Queue:
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
    """What one service may do: patterns for configure, write and read (https://www.rabbitmq.com/docs/access-control)."""

    write: str
    read: str
    configure: str = "^$"
    tags: str = ""


def _work(limit: int = 2_000_000) -> dict[str, Any]:
    """Full means a nack to the publisher, and a dead letter leaves the queue only when its target confirmed it."""
    return {
        "max-length": limit,
        "overflow": "reject-publish",
        "dead-letter-exchange": "dead",
        "dead-letter-strategy": "at-least-once",
        "delivery-limit": DELIVERY_LIMIT,
    }


EXCHANGES = (
    Exchange("events", "topic", {"alternate-exchange": "unrouted"}),
    Exchange("notifications", "fanout"),
    Exchange("work", "direct"),
    Exchange("outcomes", "topic"),
    Exchange("dead", "fanout"),
    Exchange("unrouted", "fanout"),
    *(Exchange(rung.name, "fanout") for rung in LADDER),
)

WORK_QUEUES = (
    *(Queue(lane.queue, policy=_work()) for lane in Lane),
    Queue("mail.cancel", policy=_work()),
    Queue("mailer.reactions", policy=_work()),
    Queue("leaderboard.scores", single_active_consumer=True, policy=_work()),
    Queue("gateway.outcomes", policy=_work()),
)

QUEUES = (
    *WORK_QUEUES,
    *(
        Queue(
            rung.name,
            policy={
                "message-ttl": rung.seconds * 1000,
                "max-length": 2_000_000,
                "overflow": "reject-publish",
                "dead-letter-exchange": "work",
                "dead-letter-strategy": "at-least-once",
            },
        )
        for rung in LADDER
    ),
    Queue(
        "dead-letters",
        policy={"max-length": 2_000_000, "overflow": "reject-publish", "delivery-limit": NO_DELIVERY_LIMIT},
    ),
    Queue(
        "unrouted",
        policy={
            "message-ttl": WEEK_MS,
            "max-length": 100_000,
            "overflow": "drop-head",
            "delivery-limit": NO_DELIVERY_LIMIT,
        },
    ),
    Queue(
        "notifier.log",
        type="stream",
        policy={"max-age": "1D", "max-length-bytes": 2_000_000_000, "stream-max-segment-size-bytes": 50_000_000},
    ),
)

BINDINGS = (
    Binding("events", "leaderboard.scores", "score.submitted"),
    Binding("events", "notifications", "notification.raised", to_exchange=True),
    Binding("notifications", "notifier.log"),
    Binding("outcomes", "gateway.outcomes", "#"),
    # A broadcast's own progress says what became of bulk mail; a million single notifications would drown the rest.
    Binding("outcomes", "notifications", "mail.urgent.*", to_exchange=True),
    Binding("outcomes", "notifications", "mail.normal.*", to_exchange=True),
    # Every consuming queue by its own name: there the retry ladder and a replay hand messages back.
    *(Binding("work", queue.name, queue.name) for queue in WORK_QUEUES),
    *(Binding(rung.name, rung.name) for rung in LADDER),
    Binding("dead", "dead-letters"),
    Binding("unrouted", "unrouted"),
)

_LADDER_AND_DEAD = r"retry\..+|dead"

RIGHTS = {
    "gateway": Rights(
        write=rf"^(events|work|{_LADDER_AND_DEAD})$", read=r"^(gateway\.outcomes|dead-letters)$", tags="monitoring"
    ),
    # The mailer binds its own reactions queue to the event types that its templates name, and nothing else.
    "mailer": Rights(
        write=rf"^(work|outcomes|mailer\.reactions|{_LADDER_AND_DEAD})$",
        read=r"^(mail\.(urgent|normal|bulk|cancel)|mailer\.reactions|events)$",
    ),
    "notifier": Rights(write="^$", read=r"^notifier\.log$"),
    "leaderboard": Rights(write=rf"^(notifications|{_LADDER_AND_DEAD})$", read=r"^leaderboard\.scores$"),
}


def definitions(*, live_types: Iterable[str] = ()) -> Definitions:
    """Render the table as RabbitMQ definitions, without virtual host, users or rights.

    `live_types` are further event types that the notifier shows.
    """
    bindings = [*BINDINGS, *(Binding("events", "notifications", name, to_exchange=True) for name in live_types)]
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
            for one in bindings
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


def _arguments(queue: Queue) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x-queue-type": queue.type}
    if queue.single_active_consumer:
        arguments["x-single-active-consumer"] = True
    return arguments


def boot_definitions(passwords: dict[str, str], *, vhost: str = "/", live_types: Iterable[str] = ()) -> Definitions:
    """Render the file that a blank broker loads at boot: the table, one user a service, and no `guest`.

    `passwords` maps the users of `RIGHTS`, and `deploy` (an administrator), to their passwords.
    """
    table = definitions(live_types=live_types)
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

    `salt`: 4 bytes; None makes new ones.
    """
    salt = salt or os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


async def apply(management_url: str, vhost: str = "/", *, live_types: Iterable[str] = ()) -> None:
    """Bring a running broker to the table; what is there already stays, and nothing is deleted.

    `management_url` is like http://user:password@host:15672.

    Raises:
        TopologyError: the broker did not take it.
    """
    try:
        async with httpx.AsyncClient(base_url=management_url, timeout=30) as client:
            response = await client.post(
                f"/api/definitions/{quote(vhost, safe='')}", json=definitions(live_types=live_types)
            )
    except httpx.HTTPError as error:
        raise TopologyError(f"the management API does not answer: {error or type(error).__name__}") from error
    if response.is_error:
        raise TopologyError(f"RabbitMQ refused the topology ({response.status_code}): {response.text[:500]}")


class TopologyError(Exception):
    """The broker did not take the topology."""
