"""Tasks whose outcome does not come: the mailer is asked again, seldom enough, and by one gateway."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.contracts.kinds import MAIL
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.broadcasts.dispatching import TaskMaker
from services.gateway.broadcasts.store import Phase
from services.gateway.outbox import store as outbox
from services.gateway.public_pages.links import Links
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.tables import attempts, broadcasts, subscribers, subscriptions, tasks
from services.gateway.tables import outbox as outbox_table
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.overdue import LONGEST_MS, StaleTasks, due_at
from services.gateway.tasks.store import Ledger
from tests.services.gateway_support import mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost

HOUR = 3_600_000


@pytest.fixture
async def databases(database_url: str) -> AsyncIterator[list[Database]]:
    await migrate(database_url, "services.gateway")
    both = [Database(database_url), Database(database_url)]
    yield both
    for each in both:
        await each.close()


def stale(database: Database, limit_seconds: float = 3600) -> StaleTasks:
    outbox_publisher: Any = SimpleNamespace(is_available=True, waiting=0)
    maker = TaskMaker(SuppressionStore(database, 90), Links(["k" * 40], "https://news.example"))
    return StaleTasks(database, maker, outbox_publisher, limit_seconds)


def row(task_id: str, to: str = "ada@example.com", **changes: Any) -> dict[str, Any]:
    document = {"task_id": task_id, "owner": "shop", "to": to, "subject": "s", "text": "t"}
    return new_task(MAIL, document, orjson.dumps(document), created_at=outbox.now_ms() - 2 * HOUR) | changes


async def add(database: Database, *rows: dict[str, Any]) -> None:
    async with database.write() as connection:
        for each in rows:
            await insert_many(connection, tasks, [each])


async def asked(database: Database) -> dict[str, tuple[str, int]]:
    """Return by task id where each message in the outbox goes, and as which attempt."""
    async with database.read() as connection:
        found = list(await connection.execute(sa.select(outbox_table)))
    messages = [(each, outbox.unpack(each.envelope, each.body)) for each in found]
    return {str(message.envelope.subject): (each.routing_key, message.attempt) for each, message in messages}


def test_copies_are_rarer_each_time() -> None:
    """After the limit, then after as long as the task has waited until the last copy, and once a day at least."""
    times, last = [], None
    for _ in range(8):
        last = due_at(0, last, HOUR)
        times.append(last // HOUR)
    assert times == [1, 2, 4, 8, 16, 32, 56, 80]
    assert due_at(5 * HOUR, 2 * HOUR, HOUR) == 6 * HOUR, "an outcome came since"
    assert LONGEST_MS == 24 * HOUR


async def test_a_lost_message_is_published_again(vhost: Vhost, database_url: str) -> None:
    """It was on a queue that the broker lost; the copy is done, and its outcome ends the task."""
    async with running_gateway(vhost, database_url, republish_minutes=0.02) as gateway:
        task_id = (await gateway.admin.post("/v1/mail", json=mail())).json()["id"]
        first = await wait_until(lambda: vhost.get("mail.normal"), 10, "the message is out")
        again = await wait_until(lambda: vhost.get("mail.normal"), 20, "the message is out again")
        assert again.body == first.body
        await gateway.report(task_id, State.SENT)

        async def sent() -> bool:
            return await gateway.state(task_id) == "sent"

        await wait_until(sent, 10, "the task is sent")


async def test_only_what_waits_too_long_is_asked_for(databases: list[Database]) -> None:
    """By its state, its last change and its next attempt; and nothing that is in the outbox."""
    current = outbox.now_ms()
    await add(
        databases[0],
        row("queued"),
        row("fresh", updated_at=current),
        row("in-outbox"),
        row("asked", republished_at=current - HOUR // 2),
        row("retrying", state="retrying", attempt=3),
        row("resting", state="retrying", attempt=3),
        row("cancelled", cancel_requested_at=current - HOUR),
        row("sent", state="sent", finished_at=current),
    )
    async with databases[0].write() as connection:
        await outbox.add(connection, [request_entry(MAIL, {"task_id": "in-outbox"}, b"{}")])
        for task_id, retry_at in (("retrying", current - HOUR - 1), ("resting", current - HOUR // 2)):
            values = {"task_id": task_id, "round": 1, "attempt": 3, "state": "retrying", "at": 1, "uncertain": False}
            await connection.execute(sa.insert(attempts).values(retry_at=retry_at, **values))
    await stale(databases[0]).round()
    assert await asked(databases[0]) == {
        "queued": ("mail.normal", 1),
        "in-outbox": ("mail.normal", 1),
        "retrying": ("mail.normal", 4),
        "cancelled": ("mail.cancel", 1),
    }


async def test_two_gateways_ask_once(databases: list[Database], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what they ask for may have been delivered, so that a cancel asks the mailer."""
    await add(databases[0], *(row(f"task-{n}") for n in range(60)))
    await asyncio.gather(*(stale(each).round() for each in databases for _ in range(2)))
    async with databases[0].read() as connection:
        count = (await connection.execute(sa.select(sa.func.count()).select_from(outbox_table))).scalar_one()
    assert count == 60
    async with databases[0].write() as connection:
        assert await Ledger(databases[0]).cancel(connection, ["task-1"]) == [State.QUEUED]


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Phase.RUNNING, {"on-list": ("mail.bulk", 1), "left": ("mail.cancel", 1)}),
        (Phase.PAUSED, {}),
        (Phase.CANCELLING, {"on-list": ("mail.cancel", 1), "left": ("mail.cancel", 1)}),
    ],
)
async def test_a_task_of_a_broadcast_is_made_again(
    databases: list[Database], phase: Phase, expected: dict[str, tuple[str, int]]
) -> None:
    """For those who may still be mailed; for the others the mailer is asked not to."""
    of_broadcast = {"broadcast_id": "b", "document": None, "lane": "bulk"}
    await add(
        databases[0], row("on-list", "a@example.com", **of_broadcast), row("left", "b@example.com", **of_broadcast)
    )
    async with databases[0].write() as connection:
        content = orjson.dumps({"subject": "s", "text": "Dear {{ subscriber.name }}"})
        await connection.execute(
            sa.insert(broadcasts).values(
                id="b", owner="shop", list="news", state=phase.value, content=content, total=2, dispatched=2,
                dispatch_cursor="", all_dispatched=True, cancel_after="", created_at=1, started_at=1,
            )
        )  # fmt: skip
        await connection.execute(
            sa.insert(subscribers).values(
                email="a@example.com", id="aa", name="Ada", attributes=b"{}", created_at=1, updated_at=1
            )
        )
        await connection.execute(
            sa.insert(subscriptions).values(list="news", email="a@example.com", state="confirmed", created_at=1)
        )
    await stale(databases[0]).round()
    assert await asked(databases[0]) == expected


async def test_addresses_are_ordered_by_their_bytes(databases: list[Database]) -> None:
    """Cursors are compared by the database that ordered the page, and by nothing else."""
    names = [
        "B@example.com",
        "a-z@example.com",
        "a.z@example.com",
        "a_z@example.com",
        "az@example.com",
        "b@example.com",
    ]
    await add(databases[0], *(row(f"t{n}", to) for n, to in enumerate(reversed(names))))
    async with databases[0].read() as connection:
        found = await connection.execute(sa.select(tasks.c.recipient).order_by(tasks.c.recipient))
        assert list(found.scalars()) == names
