"""Two gateways on one database: what both are asked for happens once, and nothing is skipped."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.contracts.kinds import MAIL
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.broadcasts import dispatching
from services.gateway.broadcasts.store import HELD, Phase
from services.gateway.outbox import store as outbox
from services.gateway.system import expiry
from services.gateway.tables import broadcasts, tasks
from services.gateway.tables import outbox as outbox_table
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.store import Ledger

BROADCAST = "broadcast-1"


@pytest.fixture
async def gateways(database_url: str) -> AsyncIterator[list[Database]]:
    await migrate(database_url, "services.gateway")
    both = [Database(database_url), Database(database_url)]
    yield both
    for each in both:
        await each.close()


def document(task_id: str, to: str = "ada@example.com") -> dict[str, Any]:
    return {"task_id": task_id, "owner": "shop", "to": to, "subject": "s", "text": "t"}


async def add_tasks(database: Database, ids: Iterable[str], **changes: Any) -> None:
    rows = [new_task(MAIL, document(id_), orjson.dumps(document(id_)), created_at=1) | changes for id_ in ids]
    async with database.write() as connection:
        await insert_many(connection, tasks, rows)


async def add_broadcast(database: Database, phase: Phase, recipients: dict[str, State]) -> None:
    """Make a broadcast whose tasks are for these recipients, in these states; their ids are the addresses' places."""
    rows = [
        new_task(MAIL, document(f"task-{n}", to), b"", created_at=1) | {"state": state.value, "broadcast_id": BROADCAST}
        for n, (to, state) in enumerate(recipients.items())
    ]
    async with database.write() as connection:
        await connection.execute(
            sa.insert(broadcasts).values(
                id=BROADCAST,
                owner="shop",
                list="news",
                state=phase.value,
                content=b"{}",
                total=len(rows),
                dispatched=len(rows),
                dispatch_cursor="",
                all_dispatched=True,
                cancel_after="",
                created_at=1,
            )
        )
        await insert_many(connection, tasks, rows)


async def in_outbox(database: Database) -> list[Any]:
    async with database.read() as connection:
        return list(await connection.execute(sa.select(outbox_table).order_by(outbox_table.c.sequence)))


async def state_of(database: Database, task_id: str) -> tuple[str, int]:
    async with database.read() as connection:
        query = sa.select(tasks.c.state, tasks.c.round).where(tasks.c.id == task_id)
        state, round_ = (await connection.execute(query)).one()
        return state, round_


async def both(gateways: list[Database], ask: str, ids: list[str]) -> list[list[State]]:
    async def one(database: Database) -> list[State]:
        async with database.write() as connection:
            answers: list[State] = await getattr(Ledger(database), ask)(connection, ids)
            return answers

    return await asyncio.gather(*map(one, gateways))


async def test_a_retry_at_two_gateways_begins_one_round(gateways: list[Database]) -> None:
    """And puts one message into the outbox for each task."""
    ids = [f"task-{n}" for n in range(30)]
    await add_tasks(gateways[0], ids, state=State.FAILED.value, finished_at=2)
    answers = await both(gateways, "retry", ids)
    assert answers == [[State.QUEUED] * 30] * 2
    assert {await state_of(gateways[0], id_) for id_ in ids} == {("queued", 2)}
    assert len(await in_outbox(gateways[0])) == 30


async def test_a_retry_and_the_retention_leave_no_message_without_its_task(gateways: list[Database]) -> None:
    """Whichever comes first."""
    ids = [f"task-{n}" for n in range(30)]
    await add_tasks(gateways[0], ids, state=State.FAILED.value, finished_at=2)

    async def purge() -> None:
        async with gateways[1].write() as connection:
            await expiry.delete_tasks(connection, 10, 1000)

    async def retry() -> None:
        for id_ in ids:
            async with gateways[0].write() as connection:
                try:
                    await Ledger(gateways[0]).retry(connection, [id_])
                except KeyError:
                    return  # deleted before

    await asyncio.gather(retry(), purge())
    async with gateways[0].read() as connection:
        left = set((await connection.execute(sa.select(tasks.c.id))).scalars())
    assert {row.task_id for row in await in_outbox(gateways[0])} <= left


async def test_a_cancel_at_two_gateways_answers_the_same(gateways: list[Database]) -> None:
    """Both say that it is cancelled, and the mailer is not asked for what it never had."""
    await add_tasks(gateways[0], ["task-1"])
    async with gateways[0].write() as connection:
        await outbox.add(connection, [request_entry(MAIL, document("task-1"), b"{}")])
    assert await both(gateways, "cancel", ["task-1"]) == [[State.CANCELLED]] * 2
    assert [row.routing_key for row in await in_outbox(gateways[0])] == ["mail.cancelled"]  # what is shown live


async def test_a_cancel_of_what_may_be_out_asks_the_mailer(gateways: list[Database]) -> None:
    """A message that was published without a confirm is not taken back."""
    await add_tasks(gateways[0], ["task-1"])
    async with gateways[0].write() as connection:
        await outbox.add(connection, [request_entry(MAIL, document("task-1"), b"{}")], maybe_delivered=True)
    async with gateways[0].write() as connection:
        assert await Ledger(gateways[0]).cancel(connection, ["task-1"]) == [State.QUEUED]
    assert [row.routing_key for row in await in_outbox(gateways[0])] == ["mail.normal", "mail.cancel"]


AWKWARD = [f"{a}{sign}{b}@example.com" for sign in ".-_+" for a in ("ada", "Ada", "bob", "eve") for b in range(20)]


async def test_a_cancelled_broadcast_asks_for_every_open_task_once(
    gateways: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the order of the database is, and with two gateways at it."""
    monkeypatch.setattr(dispatching, "CHUNK", 25)
    states = (State.QUEUED, State.RETRYING)
    await add_broadcast(gateways[0], Phase.CANCELLING, {to: states[n % 2] for n, to in enumerate(AWKWARD)})

    async def cancel(database: Database) -> None:
        idle = 0
        while idle < 3:
            async with database.write() as connection:
                idle = 0 if (await dispatching.withdraw(connection, BROADCAST)).count else idle + 1

    await asyncio.gather(*map(cancel, gateways))
    asked = [orjson.loads(row.body)["task_id"] for row in await in_outbox(gateways[0])]
    assert len(asked) == len(AWKWARD)
    assert sorted(asked) == sorted(f"task-{n}" for n in range(len(AWKWARD)))


@pytest.mark.parametrize("phase", [Phase.PAUSED, Phase.CANCELLING])
async def test_what_may_be_out_is_neither_held_nor_taken_back(gateways: list[Database], phase: Phase) -> None:
    """By a pause and by a cancel of a broadcast."""
    await add_broadcast(gateways[0], phase, {"a@example.com": State.QUEUED, "b@example.com": State.QUEUED})
    async with gateways[0].write() as connection:
        await outbox.add(connection, [request_entry(MAIL, document("task-0"), b"{}")])
        await outbox.add(connection, [request_entry(MAIL, document("task-1"), b"{}")], maybe_delivered=True)
        await (dispatching.hold if phase is Phase.PAUSED else dispatching.withdraw)(connection, BROADCAST)
    left = {row.task_id: row.due_at for row in await in_outbox(gateways[0])}
    assert left == ({"task-0": HELD, "task-1": 0} if phase is Phase.PAUSED else {"task-1": 0})
