"""A system as the first version left it: rows and messages in its own form, written out and not made by present code.

Every task is named after where the upgrade met it, and its recipient is `<name>@example.com`.
"""

import base64
import hashlib
import hmac
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import orjson
import sqlalchemy as sa

from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from tests.services.test_topology_upgrade import RUNGS, WORK, first_definitions
from tests.support.broker import Vhost

REVISIONS = {"gateway": "0004", "mailer": "0002", "leaderboard": "0001"}
TOKEN_KEY = "k" * 40
API_KEY = "bh_0LDkey00_" + "s" * 43
FIRST_ORDER = b'{"to":"sent@example.com","subject":"Hi","text":"Hello"}'
ENDED = {"sent": "sent", "reported": "sent", "done": "sent", "cancelled": "cancelled", "buried": "failed"}
"""Tasks that are not sent again, and the state that they have in the end."""
WAITING = ("outbox", "scheduled", "queue", "retrying", "claimed", "aa-outbox", "aa-queue")
"""Tasks whose mail the upgrade has to send; those that begin with `aa-` belong to the broadcast."""
LATER = "later"
LETTER = "letter"
PEOPLE = ("aa-outbox", "aa-queue", "ann", "ann1", "ann2", "bob", "zoe")
SECONDS = int(time.time())
NOW = SECONDS * 1000
# Ids begin with their time (UUIDv7), and retention goes by it.
BROADCAST, DEAD = (str(uuid.UUID(f"{NOW:012x}70008000{number:012x}")) for number in (1, 2))
SCHEDULED_AT = NOW + 4_000


def task_id(name: str) -> str:
    """Return the id of a task."""
    return str(uuid.UUID(bytes=hashlib.md5(name.encode(), usedforsecurity=False).digest()))


def document(name: str) -> dict[str, Any]:
    lane = {"lane": "bulk"} if name.startswith("aa-") else {}
    return {
        "to": f"{name}@example.com",
        "subject": name,
        "text": "Hello",
        "task_id": task_id(name),
        "owner": "shop",
    } | lane


def headers(type_: str, source: str, id_: str, attempt: int = 1, **more: Any) -> dict[str, Any]:
    """Return what stood in the headers of a message."""
    return {
        "cloudEvents:specversion": "1.0",
        "cloudEvents:id": id_,
        "cloudEvents:source": source,
        "cloudEvents:type": type_,
        "cloudEvents:time": datetime.fromtimestamp(SECONDS, UTC).isoformat(),
        "attempt": attempt,
        **more,
    }


def envelope(type_: str, id_: str, subject: str | None = None) -> bytes:
    """Return what the outbox and the dead letters kept of a message beside its body."""
    values = {"id": id_, "source": "bellhop/gateway", "type": type_, "subject": subject, "traceparent": None,
              "time": datetime.fromtimestamp(SECONDS, UTC), "extensions": {}, "attempt": 1, "headers": {}}  # fmt: skip
    return orjson.dumps(values)


def scores(*entries: tuple[str, float, str | None]) -> bytes:
    at = datetime.fromtimestamp(SECONDS, UTC)
    found = [{"board": "points", "player": player, "score": score, "at": at} for player, score, _ in entries]
    return orjson.dumps(
        {"scores": [one | ({"id": e[2]} if e[2] else {}) for one, e in zip(found, entries, strict=True)]}
    )


def link_token(email: str) -> str:
    """Return the token of a link to unsubscribe from the list `news`, signed by the token key."""
    payload = b"u" + uuid.UUID(task_id(f"person {email}")).bytes + (0).to_bytes(4) + b"news"
    key = hmac.digest(TOKEN_KEY.encode(), b"bellhop newsletter links", "sha256")
    return base64.urlsafe_b64encode(payload + hmac.digest(key, payload, "sha256")[:16]).rstrip(b"=").decode()


def _task(name: str, state: str, **more: Any) -> dict[str, Any]:
    finished = NOW if state == "sent" else None
    return {
        "id": task_id(name), "kind": "mail", "owner": "shop", "state": state, "round": 1, "attempt": 0,
        "lane": "normal", "recipient": f"{name}@example.com", "template": None, "event_id": None,
        "document": orjson.dumps(document(name)), "uncertain": False, "created_at": NOW, "updated_at": NOW,
        "send_at": None, "finished_at": finished, "broadcast_id": None,
    } | more  # fmt: skip


def _mail(name: str, due_at: int = NOW) -> dict[str, Any]:
    return {
        "id": task_id(f"entry {name}"), "task_id": task_id(name), "exchange": "work",
        "routing_key": f"mail.{document(name).get('lane', 'normal')}", "body": orjson.dumps(document(name)),
        "envelope": envelope("mail.requested", task_id(f"entry {name}"), task_id(name)), "due_at": due_at,
        "claimed_until": 0,
    }  # fmt: skip


def _event(name: str, type_: str, body: bytes) -> dict[str, Any]:
    return {"id": name, "task_id": None, "exchange": "events", "routing_key": type_, "body": body,
            "envelope": envelope(type_, name), "due_at": NOW, "claimed_until": 0}  # fmt: skip


def _attempt(name: str, state: str, **more: Any) -> dict[str, Any]:
    return {"task_id": task_id(name), "round": 1, "attempt": 1, "state": state, "at": NOW, "code": None,
            "enhanced": None, "reply": None, "relay": None, "retry_at": None, "uncertain": False} | more  # fmt: skip


def _fed(dialect: str) -> tuple[str, ...]:
    """Return who had a mail of the broadcast: PostgreSQL walked in the order of its locale, SQLite in that of bytes."""
    return ("ann",) if dialect == "postgresql" else ("ann1", "ann2", "ann")


def _gateway(dialect: str) -> dict[str, list[dict[str, Any]]]:
    of_issue = {"broadcast_id": BROADCAST, "document": None, "lane": "bulk"}
    fed = _fed(dialect)
    person = {"name": "", "attributes": b"{}", "created_at": NOW - 9, "updated_at": NOW - 9}
    confirmed = {"list": "news", "state": "confirmed", "created_at": NOW - 9, "confirmed_at": NOW - 9}
    letter = {"queue": "mail.normal", "type": "mail.requested", "reason": "rejected", "error": "too bad", "attempts": 1}
    return {
        "tasks": [
            _task("sent", "sent"),
            _task("outbox", "queued"),
            _task("scheduled", "scheduled", send_at=SCHEDULED_AT),
            _task(LATER, "scheduled", send_at=NOW + 86_400_000),
            *(_task(name, "queued") for name in ("queue", "done", "claimed", "cancelled", "buried", LETTER)),
            _task("retrying", "retrying", attempt=1),
            _task("reported", "retrying", attempt=1),
            *(_task(name, "sent", **of_issue) for name in fed),
            _task("aa-outbox", "queued", **of_issue),
            _task("aa-queue", "queued", **of_issue),
        ],
        "attempts": [_attempt("sent", "sent", code=250), _attempt("retrying", "retrying", code=451, retry_at=NOW)],
        "outbox": [
            _mail("outbox"),
            _mail("scheduled", SCHEDULED_AT),
            _mail(LATER, NOW + 86_400_000),
            _mail("aa-outbox"),
            _event("e-outbox", "score.submitted", scores(("ann", 1, None))),
        ],
        "idempotency_keys": [
            {"owner": "shop", "key": "order-1", "created_at": NOW,
             "answer": orjson.dumps({"id": task_id("sent"), "state": "queued"}),
             "fingerprint": hashlib.sha256(b"POST /v1/mail\n" + FIRST_ORDER).hexdigest()},
        ],
        "api_keys": [
            {"id": API_KEY[3:11], "name": "shop", "hash": hashlib.sha256(API_KEY[12:].encode()).hexdigest(),
             "scopes": "mail:send mail:read", "created_at": NOW},
        ],
        "dead_letters": [
            letter | {"id": DEAD, "identity": DEAD, "event_id": DEAD, "body": orjson.dumps(document(LETTER)),
                      "envelope": envelope("mail.requested", DEAD, task_id(LETTER)), "died_at": NOW},
        ],
        "subscribers": [
            person | {"email": f"{name}@example.com", "id": task_id(f"person {name}@example.com")} for name in PEOPLE
        ],
        "subscriptions": [confirmed | {"email": f"{name}@example.com"} for name in PEOPLE],
        "suppressions": [{"address": "gone@example.com", "reason": "asked", "source": "shop", "created_at": NOW}],
        "broadcasts": [
            {"id": BROADCAST, "owner": "shop", "list": "news", "state": "running", "total": len(PEOPLE),
             "fed": len(fed) + 2, "content": b'{"subject":"News","text":"News."}',
             "fed_after": f"{fed[-1]}@example.com", "fed_all": False, "cancel_after": "", "created_at": NOW,
             "started_at": NOW},
        ],
    }  # fmt: skip


_MAILER = [
    # Between two attempts; made and reported, but for the ack; begun by a replica that is gone.
    {"task_id": task_id("retrying"), "round": 1, "state": "waiting", "attempt": 1, "owner": None, "uncertain": False,
     "outcome": None, "created_at": SECONDS},
    {"task_id": task_id("done"), "round": 1, "state": "done", "attempt": 1, "owner": None, "uncertain": False,
     "outcome": orjson.dumps({"task_id": task_id("done"), "state": "sent", "code": 250, "owner": "shop",
                              "at": datetime.fromtimestamp(SECONDS, UTC)}).decode(), "created_at": SECONDS},
    {"task_id": task_id("claimed"), "round": 1, "state": "claimed", "attempt": 1, "owner": "gone/1",
     "uncertain": False, "outcome": None, "created_at": SECONDS},
]  # fmt: skip

_LEADERBOARD: dict[str, list[dict[str, Any]]] = {
    "boards": [{"board": "points", "order": "descending", "operator": "sum", "season": "none"}],
    "rankings": [{"id": 1, "board": "points", "season": "", "players": 1, "version": 3, "erasures": 0}],
    "results": [{"ranking": 1, "player": "ann", "score": 5.0, "at": SECONDS * 1_000_000, "version": 3}],
    "applied_messages": [{"source": "bellhop/gateway", "id": "e-applied", "applied_at": SECONDS * 1_000_000}],
    "applied_scores": [{"board": "points", "id": "s-applied", "applied_at": SECONDS * 1_000_000}],
}
POINTS = {"ann": 5.0 + 2 + 1, "bob": 7.0}
"""What the players have in the end: before, by the message on the queue, and by the one in the outbox."""


async def make_database(url: str) -> None:
    """Make the tables of the first version and fill them."""
    for service, revision in REVISIONS.items():
        await migrate(url, f"services.{service}", to=revision)
    database = Database(url)
    replica = {"owner": "gone/1", "seen_at": SECONDS - 3600}
    rows = _gateway(database.dialect) | _LEADERBOARD | {"mailer_inbox": _MAILER, "mailer_replicas": [replica]}
    async with database.write() as connection:
        await connection.run_sync(_insert, rows)
    await database.close()


def _insert(connection: sa.Connection, rows: dict[str, list[dict[str, Any]]]) -> None:
    metadata = sa.MetaData()
    metadata.reflect(connection)
    for table, some in rows.items():
        for row in some:
            connection.execute(sa.insert(metadata.tables[table]).values(row))


async def make_broker(vhost: Vhost) -> None:
    """Make the topology of the first version, and put its messages into the queues."""
    answer = await vhost.management.post(f"/api/definitions/{vhost.name}", json=_definitions())
    assert answer.is_success, answer.text

    async def mail(name: str, exchange: str = "work", attempt: int = 1, **more: Any) -> None:
        body = document(name)
        more = headers("mail.requested", "bellhop/gateway", f"m-{name}", attempt, **more)
        more["cloudEvents:subject"] = task_id(name)
        await vhost.publish(exchange, f"mail.{body.get('lane', 'normal')}", orjson.dumps(body), headers=more)

    for name in ("queue", "done", "claimed", "cancelled", "aa-queue"):
        await mail(name)
    await mail("retrying", exchange="retry.5s", attempt=2)
    died = {"bellhop-reason": "rejected", "bellhop-error": "too bad", "bellhop-queue": "mail.normal",
            "bellhop-died-at": datetime.fromtimestamp(SECONDS, UTC).isoformat()}  # fmt: skip
    await mail("buried", exchange="dead", **died)
    cancel = orjson.dumps({"task_id": task_id("cancelled"), "round": 1})
    await vhost.publish("work", "mail.cancel", cancel, headers=headers("mail.cancelled", "bellhop/gateway", "c-1"))
    outcome = {"task_id": task_id("reported"), "round": 1, "attempt": 1, "state": "sent", "code": 250, "owner": "shop",
               "lane": "normal", "at": datetime.fromtimestamp(SECONDS, UTC)}  # fmt: skip
    await vhost.publish(
        "outcomes", "mail.normal.sent", orjson.dumps(outcome), headers=headers("mail.sent", "/mailer", "o-1")
    )
    submitted = scores(("ann", 2, None), ("bob", 7, None), ("bob", 100, "s-applied"))
    for id_, body in (("e-queue", submitted), ("e-applied", scores(("ann", 100, None)))):
        more = headers("score.submitted", "bellhop/gateway", id_)
        await vhost.publish("events", "score.submitted", body, headers=more)
    order = orjson.dumps({"email": "order@example.com", "order": "17"})
    await vhost.publish("events", "order.placed", order, headers=headers("order.placed", "/shop", "order-17"))
    # `events` had an alternate exchange; here somebody's queue takes every type.
    other = headers("rain.fell", "/weather", "rain-1")
    await vhost.publish("unrouted", "rain.fell", b'{"mm":3}', headers=other)


def _definitions() -> dict[str, Any]:
    found = first_definitions()
    work = {"max-length": 2_000_000, "overflow": "reject-publish", "dead-letter-exchange": "dead",
            "dead-letter-strategy": "at-least-once", "delivery-limit": 20}  # fmt: skip
    retry_queue = {"max-length": 2_000_000, "overflow": "reject-publish", "dead-letter-exchange": "work",
            "dead-letter-strategy": "at-least-once"}  # fmt: skip
    limits = dict.fromkeys(WORK, work) | {
        name: retry_queue | {"message-ttl": seconds * 1000}
        for name, seconds in zip(RUNGS, (5, 30, 120, 600, 3600, 21_600), strict=True)
    }
    found["policies"] = [
        {"name": f"bellhop.{name}", "pattern": f"^{name.replace('.', chr(92) + '.')}$", "apply-to": "queues",
         "priority": 0, "definition": definition}
        for name, definition in limits.items()
    ] + [one for one in found["policies"] if one["name"] in ("bellhop.events", "theirs")]  # fmt: skip
    return found
