"""What the gateway deletes, and what it keeps."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa

from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.attachments.store import AttachmentStore, OverQuota, attachment_usage, attachments
from services.gateway.broadcasts.store import Action, Broadcasts
from services.gateway.outbox.store import now_ms
from services.gateway.settings import Settings
from services.gateway.system import retention
from services.gateway.system.expiry import _id_at
from services.gateway.system.retention import DAY_MS, KEPT, Retention, rules
from services.gateway.tables import (
    api_keys,
    attempts,
    audit,
    broadcasts,
    dead_letters,
    idempotency_keys,
    metadata,
    subscribers,
    subscriptions,
    suppressions,
    tasks,
)

SETTINGS = Settings.model_validate(
    {
        "amqp_url": "amqp://guest:guest@127.0.0.1/",
        "database_url": "sqlite+aiosqlite:///x.db",
        "token_key": "k" * 40,
        "admin_key": "k" * 40,
    }
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with our schema."""
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    yield database
    await database.close()


def ago(days: float) -> int:
    return now_ms() - round(days * DAY_MS)


def id_of(days: float) -> str:
    """Return an id that was made so long ago."""
    return f"{_id_at(ago(days))}7000-8000-000000000000"


async def put(database: Database, table: sa.Table, **values: Any) -> None:
    """Insert a row; what is not given is empty."""
    empty: dict[type[Any], Any] = {str: "", int: 0, bytes: b"{}", bool: False}
    row = {column.key: empty[column.type.python_type] for column in table.c if not column.nullable}
    async with database.write() as connection:
        await connection.execute(sa.insert(table).values(row | values))


async def column(database: Database, column: sa.Column[Any]) -> list[Any]:
    async with database.read() as connection:
        return list((await connection.execute(sa.select(column).order_by(column))).scalars())


async def enforce(database: Database) -> None:
    enforced = Retention(database, SETTINGS)
    while await enforced.round() is not None:
        pass


def test_every_table_has_its_retention() -> None:
    """A table that only grows fills the disk one day: a new one needs a rule, or a reason why it needs none."""
    covered = {name for rule in rules(SETTINGS) for name in rule.tables}

    assert covered | KEPT.keys() == metadata.tables.keys()
    assert not covered & KEPT.keys()


async def test_finished_tasks_go_with_their_attempts(database: Database) -> None:
    """A task that is not finished stays, however old it is."""
    for name, finished in (("old", ago(31)), ("new", ago(29)), ("open", None)):
        await put(database, tasks, id=name, finished_at=finished)
        await put(database, attempts, task_id=name)

    await enforce(database)

    assert await column(database, tasks.c.id) == ["new", "open"]
    assert await column(database, attempts.c.task_id) == ["new", "open"]


async def test_idempotency_keys_go(database: Database) -> None:
    """After their hours, and not before."""
    await put(database, idempotency_keys, owner="shop", key="old", created_at=ago(1.01))
    await put(database, idempotency_keys, owner="shop", key="new", created_at=ago(0.99))

    await enforce(database)

    assert await column(database, idempotency_keys.c.key) == ["new"]


async def test_dead_letters_lose_their_body_and_then_their_row(database: Database) -> None:
    """A replayed one soon, a waiting one late and marked as deleted; the record of both a year later."""
    letters = {"replayed 8": 8.0, "replayed 6": 6.0, "waiting 91": None, "waiting 89": None, "replayed 366": 366.0}
    for name, replayed in letters.items():
        await put(
            database,
            dead_letters,
            id=id_of(float(name.split()[1])),
            identity=name,
            body=b"body",
            replayed_at=None if replayed is None else ago(replayed),
        )

    await enforce(database)

    async with database.read() as connection:
        rows = {row["identity"]: row for row in (await connection.execute(sa.select(dead_letters))).mappings()}
    assert {name: row["body"] for name, row in rows.items()} == {
        "replayed 8": b"",
        "replayed 6": b"body",
        "waiting 91": b"",
        "waiting 89": b"body",
    }
    assert [name for name, row in rows.items() if row["deleted_at"] is not None] == ["waiting 91"]
    assert {name for name, row in rows.items() if row["erased_at"] is not None} == {"replayed 8", "waiting 91"}


async def test_broadcasts_lose_their_content_and_then_their_row(database: Database) -> None:
    """Counts stay for a year; one that runs stays as it is; without content nothing can be retried."""
    ids = {name: id_of(400 + number) for number, name in enumerate(("day", "month", "year", "running"))}
    for name, finished in (("day", 1), ("month", 31), ("year", 366)):
        await put(database, broadcasts, id=ids[name], owner=name, state="finished", finished_at=ago(finished))
    await put(database, broadcasts, id=ids["running"], owner="running", state="running")

    await enforce(database)

    async with database.read() as connection:
        rows = (await connection.execute(sa.select(broadcasts.c.owner, broadcasts.c.content))).all()
    assert sorted(tuple(row) for row in rows) == [("day", b"{}"), ("month", b""), ("running", b"{}")]
    store = Broadcasts(database)
    assert not (await store.act(ids["month"], Action.RETRY_FAILED, "admin"))[0]
    assert (await store.act(ids["day"], Action.RETRY_FAILED, "admin"))[0]


async def test_the_rest_goes_by_age(database: Database) -> None:
    """Audit entries, suppressions that have ended, keys that were revoked long ago, sign-ups without an answer."""
    await put(database, audit, id=id_of(366), action="old")
    await put(database, audit, id=id_of(364), action="new")
    await put(database, suppressions, address="ended", expires_at=now_ms() - 1)
    await put(database, suppressions, address="later", expires_at=now_ms() + 60_000)
    await put(database, suppressions, address="never")
    for name, revoked in (("old", ago(366)), ("new", ago(364)), ("valid", None)):
        await put(database, api_keys, id=name, revoked_at=revoked)
    for name, state, unsubscribed in (("asked", "pending", None), ("left", "pending", 1), ("in", "confirmed", None)):
        await put(database, subscribers, email=name, id=name)
        values = {"email": name, "state": state, "asked_at": ago(8), "unsubscribed_at": unsubscribed}
        await put(database, subscriptions, list="news", **values)

    await enforce(database)

    assert await column(database, audit.c.action) == ["new"]
    assert await column(database, suppressions.c.address) == ["later", "never"]
    assert await column(database, api_keys.c.id) == ["new", "valid"]
    assert await column(database, subscribers.c.email) == ["in", "left"]
    assert await column(database, subscriptions.c.state) == ["confirmed", "unsubscribed"]


async def test_a_key_has_its_quota_of_attachments(database: Database) -> None:
    """The same file again takes no more, and what is deleted makes room."""
    store = AttachmentStore(database, 30, quota=1000, total=1500)
    await store.add("shop", "a", "text/plain", b"a" * 600)
    await store.add("shop", "a", "text/plain", b"a" * 600)
    with pytest.raises(OverQuota, match="This key's attachments would have 1200 bytes of at most 1000"):
        await store.add("shop", "b", "text/plain", b"b" * 600)
    with pytest.raises(OverQuota, match="All attachments together"):
        await store.add("blog", "b", "text/plain", b"b" * 950)
    async with database.write() as connection:
        await connection.execute(sa.update(attachments).values(expires_at=1))

    await enforce(database)

    assert await column(database, attachment_usage.c.bytes) == [0]
    await store.add("shop", "b", "text/plain", b"b" * 600)


async def test_uploads_at_the_same_time_do_not_exceed_the_quota(database: Database) -> None:
    """Two gateways, one key: the database decides."""
    stores = [AttachmentStore(Database(database.url), 30, quota=1000, total=100_000) for _ in range(2)]
    uploads = [
        store.add("shop", f"{number}", "text/plain", bytes([number]) * 300) for number in range(6) for store in stores
    ]

    results = await asyncio.gather(*uploads, return_exceptions=True)

    for store in stores:
        await store._database.close()
    assert {type(result).__name__ for result in results} == {"StoredAttachment", "OverQuota"}
    assert await column(database, attachment_usage.c.bytes) == [900]
    assert sum(await column(database, attachments.c.size)) == 900


async def test_a_backlog_is_deleted_in_bites_by_two_gateways(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No transaction deletes more than its bite, and gateways that delete together neither fail nor wait."""
    monkeypatch.setattr(retention, "RULE_SECONDS", 0)
    async with database.write() as connection:
        numbers = [{"id": id_of(400 + n / 1000), "n": n} for n in range(2500)]
        await connection.execute(
            sa.text("INSERT INTO audit (id, at, actor, action, subject) VALUES (:id, :n, '', '', '')"), numbers
        )
    first, second = Retention(database, SETTINGS), Retention(Database(database.url), SETTINGS)

    assert await first.round() == retention.NEXT_SECONDS
    assert len(await column(database, audit.c.id)) == 1500
    await asyncio.gather(first.round(), second.round())
    await asyncio.gather(first.round(), second.round())

    await second._database.close()
    assert await column(database, audit.c.id) == []
