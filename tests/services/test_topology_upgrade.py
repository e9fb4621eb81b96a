"""A broker with the topology of the first version is brought to the present one while messages lie in its queues."""

from typing import Any

import pytest

from bellhop.amqp import applying, topology
from bellhop.amqp.connection import Connection
from tests.support import wait_until
from tests.support.broker import Vhost

RUNGS = ("retry.5s", "retry.30s", "retry.2m", "retry.10m", "retry.1h", "retry.6h")
WORK = (
    "mail.urgent", "mail.normal", "mail.bulk", "mail.cancel", "mailer.reactions", "leaderboard.scores",
    "gateway.outcomes",
)  # fmt: skip
FIRST_EXCHANGES = {
    "events": "topic", "notifications": "fanout", "work": "direct", "outcomes": "topic", "dead": "fanout",
    "unrouted": "fanout", **dict.fromkeys(RUNGS, "fanout"),
}  # fmt: skip
FIRST_QUEUES = (*WORK, *RUNGS, "dead-letters", "unrouted", "notifier.log")
FIRST_BINDINGS = [
    ("events", "queue", "leaderboard.scores", "score.submitted"),
    ("events", "exchange", "notifications", "notification.raised"),
    # Of BELLHOP_LIVE_TYPES, and of the mailer itself.
    ("events", "exchange", "notifications", "order.paid"),
    ("events", "queue", "mailer.reactions", "order.placed"),
    ("notifications", "queue", "notifier.log", ""),
    ("outcomes", "queue", "gateway.outcomes", "#"),
    ("outcomes", "exchange", "notifications", "mail.urgent.*"),
    ("outcomes", "exchange", "notifications", "mail.normal.*"),
    *(("work", "queue", queue, queue) for queue in WORK),
    *((retry_queue, "queue", retry_queue, "") for retry_queue in RUNGS),
    ("dead", "queue", "dead-letters", ""),
    ("unrouted", "queue", "unrouted", ""),
]
FIRST_RIGHTS = {
    "gateway": (r"^(events|work|retry\..+|dead)$", r"^(gateway\.outcomes|dead-letters)$"),
    "mailer": (
        r"^(work|outcomes|mailer\.reactions|retry\..+|dead)$",
        r"^(mail\.(urgent|normal|bulk|cancel)|mailer\.reactions|events)$",
    ),
}
THEIRS = [
    ("events", "queue", "theirs", "#"),
    ("notifications", "queue", "theirs", ""),
    ("amq.topic", "queue", "theirs", "#"),
]
WAITING = {"leaderboard.scores": 3, "mailer.reactions": 2, "gateway.outcomes": 4, "mail.normal": 5, "unrouted": 1}


def _arguments(queue: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {"x-queue-type": "stream" if queue == "notifier.log" else "quorum"}
    if queue == "leaderboard.scores":
        arguments["x-single-active-consumer"] = True
    return arguments


def first_definitions() -> dict[str, Any]:
    """Return the definitions of the first version, and what somebody else made beside them."""
    return {
        "exchanges": [
            {"name": name, "type": kind, "durable": True, "auto_delete": False, "internal": False, "arguments": {}}
            for name, kind in FIRST_EXCHANGES.items()
        ],
        "queues": [
            {"name": name, "durable": True, "auto_delete": False, "arguments": _arguments(name)}
            for name in FIRST_QUEUES
        ]
        + [{"name": "theirs", "durable": True, "auto_delete": False, "arguments": {}}],
        "bindings": [
            {"source": source, "destination_type": kind, "destination": name, "routing_key": key, "arguments": {}}
            for source, kind, name, key in FIRST_BINDINGS + THEIRS
        ],
        "policies": [
            {"name": "bellhop.events", "pattern": "^events$", "apply-to": "exchanges", "priority": 0,
             "definition": {"alternate-exchange": "unrouted"}},
            {"name": "theirs", "pattern": "^theirs$", "apply-to": "queues", "priority": 0,
             "definition": {"max-length": 1000}},
            {"name": "bellhop.mail.normal", "pattern": "^mail\\.normal$", "apply-to": "queues", "priority": 0,
             "definition": {"max-length": 7}},
        ],
    }  # fmt: skip


@pytest.fixture
async def first(bare_vhost: Vhost) -> Vhost:
    """A virtual host as the first version left it, with messages in its queues."""
    answer = await bare_vhost.management.post(f"/api/definitions/{bare_vhost.name}", json=first_definitions())
    assert answer.is_success, answer.text
    for queue, count in WAITING.items():
        for _ in range(count):
            await bare_vhost.publish("", queue)
    return bare_vhost


async def bindings(vhost: Vhost) -> set[tuple[str, str, str, str]]:
    found = (await vhost.management.get(f"/api/bindings/{vhost.name}")).json()
    return {
        (one["source"], one["destination_type"], one["destination"], one["routing_key"])
        for one in found
        if one["source"]
    }


def wanted() -> set[tuple[str, str, str, str]]:
    return {
        (one.source, "exchange" if one.to_exchange else "queue", one.destination, one.key) for one in topology.BINDINGS
    }


async def policies(vhost: Vhost) -> dict[str, dict[str, Any]]:
    found = (await vhost.management.get(f"/api/policies/{vhost.name}")).json()
    return {one["name"]: one["definition"] for one in found}


async def test_what_was_ours_is_replaced_and_what_is_not_stays(first: Vhost) -> None:
    """Every message is still there, foreign bindings too, and one that hides a missing queue is named."""
    done = await applying.apply(first.broker.management_url, first.name)

    assert await bindings(first) == wanted() | set(THEIRS)
    assert {queue: await first.depth(queue) for queue in WAITING} == WAITING
    left = await policies(first)
    assert left.keys() == {"theirs", *(one["name"] for one in topology.definitions()["policies"])}
    assert len(done.removed) == len(set(FIRST_BINDINGS) - wanted()) + 1
    (warning,) = done.warnings
    assert "The queue theirs is bound to the exchange notifications" in warning

    assert await applying.apply(first.broker.management_url, first.name) == applying.Applied((), done.warnings)


async def test_afterwards_events_reaches_no_queue_of_ours(first: Vhost) -> None:
    """But the queues of others, once."""
    await applying.apply(first.broker.management_url, first.name)
    await first.publish("events", "score.submitted")
    assert await first.depth("leaderboard.scores") == WAITING["leaderboard.scores"]
    assert await first.depth("theirs") == 1


async def test_an_operators_policies_stay_where_they_are_to_be_kept(first: Vhost) -> None:
    """As in a composed system, where this runs at every start; a new queue gets its policy."""
    await applying.apply(first.broker.management_url, first.name, keep_policies=True)
    left = await policies(first)
    assert left["bellhop.mail.normal"] == {"max-length": 7}
    assert left["bellhop.gateway.announcements"]["overflow"] == "reject-publish"
    assert "bellhop.events" not in left


async def test_rights_that_an_earlier_version_gave_are_brought_up(first: Vhost) -> None:
    """Those of its users; a user with other rights is somebody else's."""
    management = first.management
    for user in ("gateway", "mailer", "leaderboard"):
        await management.put(f"/api/users/{user}", json={"password": "x" * 20, "tags": ""})
        write, read = FIRST_RIGHTS.get(user, (".*", ".*"))
        given = {"configure": "^$", "write": write, "read": read}
        await management.put(f"/api/permissions/{first.name}/{user}", json=given)
    await applying.apply(first.broker.management_url, first.name)
    for user in ("gateway", "mailer"):
        found = (await management.get(f"/api/permissions/{first.name}/{user}")).json()
        assert (found["write"], found["read"]) == (topology.RIGHTS[user].write, topology.RIGHTS[user].read)
    untouched = (await management.get(f"/api/permissions/{first.name}/leaderboard")).json()
    assert untouched["write"] == ".*"
    for user in ("gateway", "mailer", "leaderboard"):
        await management.delete(f"/api/users/{user}")


async def test_while_an_earlier_gateway_runs_its_bindings_stay(first: Vhost, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it publishes still goes by way of them; applied again after its end, they go."""
    monkeypatch.setattr("bellhop.amqp.connection.PROPERTY", "something_else")
    old = Connection(first.amqp_url, "bellhop/gateway/old/publish")
    await old.start()
    await wait_until(lambda: _listed(first, 1), 20, "RabbitMQ lists the connection")
    done = await applying.apply(first.broker.management_url, first.name)
    assert not done.removed
    assert "bellhop/gateway/old/publish" in done.warnings[-1]
    assert set(FIRST_BINDINGS) <= await bindings(first)

    await old.close()
    await wait_until(lambda: _listed(first, 0), 20, "RabbitMQ lists it no longer")
    assert (await applying.apply(first.broker.management_url, first.name)).removed


async def _listed(vhost: Vhost, count: int) -> bool:
    found = (await vhost.management.get(f"/api/vhosts/{vhost.name}/connections")).json()
    ours = [one for one in found if str(one.get("client_properties", {}).get("connection_name")).startswith("bellhop")]
    return len(ours) == count
