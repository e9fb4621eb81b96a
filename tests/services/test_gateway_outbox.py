"""The outbox, on both databases: what may be claimed, and what is known about a message that was published."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from time import monotonic

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import Message
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.sql.database import Database, clock_ms
from bellhop.sql.migrations import migrate
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry, Released, ReleaseReason
from services.gateway.tables import outbox as table

BULK = ("work", "mail.bulk")
NORMAL = ("work", "mail.normal")
HOUR_MS = 3_600_000


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    yield database
    await database.close()


def entry(task_id: str, destination: tuple[str, str] = BULK, due_at: int = 0) -> Entry:
    message = Message(b"{}", Envelope(type="mail.requested", source="tests", subject=task_id))
    return Entry(*destination, message, task_id, due_at)


async def add(database: Database, *entries: Entry, claimed: bool = False) -> None:
    async with database.write() as connection:
        await outbox.add(connection, list(entries), claimed=claimed)


async def claim(database: Database, destination: tuple[str, str] = BULK, limit: int = 500) -> list[Entry]:
    async with database.write() as connection:
        return await outbox.claim(connection, destination, limit)


async def release(database: Database, entries: list[Entry], fate: ReleaseReason) -> None:
    async with database.write() as connection:
        await outbox.release(connection, [Released(entries, fate, monotonic() + outbox.LEASE_MS / 1000)])


async def withdraw(database: Database, task_id: str) -> bool:
    async with database.write() as connection:
        return await outbox.withdraw(connection, task_id)


def names(entries: list[Entry]) -> list[str | None]:
    return [each.task_id for each in entries]


async def test_each_destination_is_claimed_by_itself(database: Database) -> None:
    """However much waits for another one."""
    await add(database, *(entry(f"b{n}") for n in range(600)), entry("n", NORMAL))
    assert names(await claim(database, NORMAL)) == ["n"]
    assert len(await claim(database, BULK)) == 500


async def test_destinations_are_listed_once_each(database: Database) -> None:
    """A walk visits every destination that has messages, and ends."""
    await add(database, *(entry(str(n), ("work", f"mail.{n % 3}")) for n in range(9)), entry("e", ("events", "x")))
    found: list[tuple[str, str]] = []
    async with database.read() as connection:
        while (following := await outbox.next_destination(connection, found[-1] if found else None)) is not None:
            found.append(following)
    assert found == [("events", "x"), ("work", "mail.0"), ("work", "mail.1"), ("work", "mail.2")]


async def test_messages_without_a_time_go_out_in_order_whatever_the_clock_says(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written while the clock was an hour ahead waits for no hour, and stands before what came later."""
    right = outbox.now_ms
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "now_ms", lambda: right() + HOUR_MS)
        await add(database, entry("ahead"))
    await add(database, entry("later"))
    async with database.read() as connection:
        assert await outbox.waiting(connection) == 2
    assert names(await claim(database)) == ["ahead", "later"]


@pytest.mark.parametrize("fate", [None, ReleaseReason.REFUSED])
async def test_a_claim_or_back_off_of_a_clock_that_was_ahead_is_void(
    database: Database, monkeypatch: pytest.MonkeyPatch, fate: ReleaseReason | None
) -> None:
    """It would hold the message for an hour."""
    await add(database, entry("t"))

    async def ahead(connection: AsyncConnection) -> int:
        return await clock_ms(connection) + HOUR_MS

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "clock_ms", ahead)
        claimed = await claim(database)
        if fate is not None:
            await release(database, claimed, fate)
    assert names(await claim(database)) == ["t"]


async def test_due_messages_and_others_share_a_claim(database: Database) -> None:
    """A backlog does not keep back what was scheduled, nor the other way round."""
    await add(database, *(entry(f"now{n}") for n in range(10)), *(entry(f"due{n}", due_at=n + 1) for n in range(10)))
    assert sorted(str(name)[:3] for name in names(await claim(database, limit=8))) == ["due"] * 4 + ["now"] * 4


async def test_a_refused_message_waits_before_it_is_claimed_again(database: Database) -> None:
    """And what was not tried yet goes first."""
    await add(database, entry("refused"), entry("other"))
    (first,) = await claim(database, limit=1)
    await release(database, [first], ReleaseReason.REFUSED)
    assert names(await claim(database)) == ["other"]


async def test_only_what_certainly_was_not_published_can_be_withdrawn(database: Database) -> None:
    """Not claimed, or released as not taken; anything else may have been delivered."""
    await add(database, entry("new"), *(entry(fate.value) for fate in ReleaseReason))
    await add(database, entry("claimed"), claimed=True)
    assert await withdraw(database, "new")
    assert not await withdraw(database, "claimed")
    for each in await claim(database):
        await release(database, [each], ReleaseReason(each.task_id))
    withdrawn = {fate: await withdraw(database, fate.value) for fate in ReleaseReason}
    assert withdrawn == {
        ReleaseReason.UNSENT: True,
        ReleaseReason.REFUSED: True,
        ReleaseReason.UNKNOWN: False,
        ReleaseReason.HANGING: False,
    }


async def test_a_lease_that_ran_out_leaves_a_mark(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may have published the message, so even a refusal later on does not make it certain."""
    monkeypatch.setattr(outbox, "LEASE_MS", 0)
    await add(database, entry("t"), claimed=True)
    assert not await withdraw(database, "t")
    await release(database, await claim(database), ReleaseReason.UNSENT)
    assert not await withdraw(database, "t")


async def test_a_late_release_does_not_take_the_claim_of_another_process(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose message would then be withdrawn while it is published."""
    await add(database, entry("t"))
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "LEASE_MS", 0)
        late = await claim(database)
        lease_ends = monotonic()
    await asyncio.sleep(0.002)
    assert await claim(database)
    async with database.write() as connection:
        await outbox.release(connection, [Released(late, ReleaseReason.UNSENT, lease_ends)])
    assert await claim(database) == []


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_lease_holds_whatever_the_clocks_of_the_gateways_say(
    database: Database, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The clock of one gateway differs by an hour: what it claims, or refuses, is not claimed by another meanwhile."""
    right = outbox.now_ms
    await add(database, entry("refused"))
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "now_ms", lambda: right() + hours * HOUR_MS)
        await release(database, await claim(database), ReleaseReason.REFUSED)
        await add(database, entry("claimed by the commit"), claimed=True)
        await add(database, entry("claimed by the sweep"))
        assert names(await claim(database)) == ["claimed by the sweep"]
    assert await claim(database) == []


async def test_what_is_left_of_an_event_keeps_its_place(database: Database) -> None:
    """It was accepted before what was added later; any number of events take one commit."""
    await add(database, *(entry(name, ("events", "score.submitted")) for name in "ab"), entry("c"))
    a, b = await claim(database, ("events", "score.submitted"))
    left = [(each, (replace(each, id=new_id(), exchange="work", routing_key="scores"),)) for each in (b, a)]
    copy = replace(a, id=new_id(), exchange="events:copy")
    left[1] = (a, (*left[1][1], copy))
    async with database.write() as connection:
        assert await outbox.replace(connection, [left]) == [None]
    async with database.read() as connection:
        rows = await connection.execute(sa.select(table).order_by(table.c.sequence))
        found = [(row.id, row.task_id, row.exchange, row.claimed_until) for row in rows]
    assert [row[1:] for row in found] == [
        ("a", "work", 0), ("b", "work", 0), ("c", "work", 0), ("a", "events:copy", 0),
    ]  # fmt: skip
    assert [row[0] for row in found[:2]] == [a.id, b.id]
    assert names(await claim(database, ("work", "scores"))) == ["a", "b"]


async def test_two_relays_share_the_messages(database_url: str, database: Database) -> None:
    """Each is claimed by one of them."""
    await add(database, *(entry(str(n)) for n in range(400)))
    other = Database(database_url)
    try:
        halves = await asyncio.gather(*(claim(each, limit=50) for each in (database, other) for _ in range(4)))
    finally:
        await other.close()
    claimed = [name for half in halves for name in names(half)]
    assert len(claimed) == len(set(claimed))
    async with database.read() as connection:
        held = await connection.execute(sa.select(sa.func.count()).where(table.c.claimed_until > 0))
        assert held.scalar_one() == len(claimed)
