"""Reservations of idempotency keys, on both databases: two gateways, one effect, whatever their clocks say."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial

import pytest
import sqlalchemy as sa

from bellhop.sql.database import Database, DatabaseUnavailable, first_in_transaction
from bellhop.sql.group_commit import GroupCommit
from bellhop.sql.migrations import migrate
from services.gateway.acceptance import store as store
from services.gateway.acceptance.store import IN_PROGRESS, Finished, IdempotencyKey, KeyDecision, Reserved, StoredKey
from services.gateway.outbox import store as outbox
from services.gateway.tables import board_names

HOUR_MS = 3_600_000


@pytest.fixture
async def gateways(database_url: str) -> AsyncIterator[list[Database]]:
    await migrate(database_url, "services.gateway")
    both = [Database(database_url), Database(database_url)]
    yield both
    for each in both:
        await each.close()


def key(name: str = "k") -> IdempotencyKey:
    return IdempotencyKey("shop", name, "f")


async def reserve(database: Database, wanted: IdempotencyKey) -> Reserved:
    async with database.write() as connection:
        return (await store.reserve(connection, [wanted]))[0]


async def end(database: Database, wanted: IdempotencyKey, stored: StoredKey, status: int | None) -> None:
    async with database.write() as connection:
        await store.finish(connection, [Finished(wanted, stored, status, b"{}")])


@contextmanager
def noting(wanted: IdempotencyKey, stored: StoredKey) -> Iterator[None]:
    token = first_in_transaction.set(partial(store.note_effect, key=wanted, stored=stored))
    try:
        yield
    finally:
        first_in_transaction.reset(token)


async def effect(database: Database, name: str) -> None:
    async with database.write() as connection:
        await connection.execute(sa.insert(board_names).values(board=name, owner="shop", created_at=1))


async def effects(database: Database) -> set[str]:
    async with database.read() as connection:
        return set((await connection.execute(sa.select(board_names.c.board))).scalars())


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_reservation_holds_whatever_the_clocks_say(
    gateways: list[Database], monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """The clock of one gateway differs by an hour: neither takes over from the other."""
    one, two = gateways
    right = outbox.now_ms
    with monkeypatch.context() as patch:
        for module in (outbox, store):
            patch.setattr(module, "now_ms", lambda: right() + hours * HOUR_MS)
        assert (await reserve(one, key("a"))).decision is KeyDecision.EXECUTE
    assert (await reserve(two, key("a"))).decision is KeyDecision.WAIT
    assert (await reserve(two, key("b"))).decision is KeyDecision.EXECUTE
    with monkeypatch.context() as patch:
        for module in (outbox, store):
            patch.setattr(module, "now_ms", lambda: right() + hours * HOUR_MS)
        assert (await reserve(one, key("b"))).decision is KeyDecision.WAIT


async def test_an_unknown_end_is_told_by_what_was_committed(gateways: list[Database]) -> None:
    """With an effect its answer is lost; without, the next request is executed. Nobody waits for the lease."""
    one, two = gateways
    for name, decision in (("with", KeyDecision.ANSWER_LOST), ("without", KeyDecision.EXECUTE)):
        wanted = key(name)
        stored = (await reserve(one, wanted)).stored
        with noting(wanted, stored):
            if decision is KeyDecision.ANSWER_LOST:
                await effect(one, name)
        assert (await reserve(two, key(name))).decision is KeyDecision.WAIT
        await end(one, wanted, stored, IN_PROGRESS)
        assert (await reserve(two, key(name))).decision is decision


async def test_an_effect_that_is_rolled_back_was_none(gateways: list[Database]) -> None:
    """The note goes with it."""
    one, two = gateways
    wanted = key()
    stored = (await reserve(one, wanted)).stored
    with noting(wanted, stored), pytest.raises(RuntimeError):
        async with one.write():
            raise RuntimeError("the effect fails")
    await end(one, wanted, stored, IN_PROGRESS)
    assert (await reserve(two, key())).decision is KeyDecision.EXECUTE


async def test_who_lost_the_lease_writes_nothing_more(
    gateways: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was stopped for a minute, and whose key another one took over; by a group commit, too."""
    one, two = gateways
    wanted = key()
    monkeypatch.setattr(store, "LEASE_MS", 0)
    slow = (await reserve(one, wanted)).stored
    await asyncio.sleep(0.01)
    monkeypatch.undo()
    other = key()
    took_over = await reserve(two, other)
    assert took_over.decision is KeyDecision.EXECUTE
    commits = GroupCommit(one)

    async def by_commit(connection: object, names: list[str]) -> list[None]:
        raise AssertionError("the transaction has ended before")

    with noting(wanted, slow):
        with pytest.raises(DatabaseUnavailable, match="took so long"):
            await effect(one, "slow")
        with pytest.raises(DatabaseUnavailable, match="took so long"):
            await commits.write(by_commit, "slow")
    await end(one, wanted, slow, None)
    with noting(other, took_over.stored):
        await effect(two, "other")
    assert await effects(one) == {"other"}
    await end(two, other, took_over.stored, 201)
    assert (await reserve(one, key())).decision is KeyDecision.REPEAT_ANSWER


async def test_while_an_effect_is_being_committed_its_key_is_not_taken_over(
    gateways: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client was cut off, or its lease ended, and the server has not decided yet. The others do not wait for it."""
    one, two = gateways
    if one.dialect == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    monkeypatch.setattr(store, "LEASE_MS", 0)
    wanted = key()
    stored = (await reserve(one, wanted)).stored
    await asyncio.sleep(0.01)
    async with AsyncExitStack() as transaction:
        with noting(wanted, stored):
            await transaction.enter_async_context(one.write())
        assert (await reserve(two, key())).decision is KeyDecision.WAIT
    assert (await reserve(two, key())).decision is KeyDecision.ANSWER_LOST


async def test_of_two_gateways_each_key_is_executed_by_one(gateways: list[Database]) -> None:
    """Many keys, asked for by both at the same time, half of them left behind by a request whose end is unknown."""
    executed: list[str] = []
    keys = [f"k{number}" for number in range(30)]
    for name in keys[::2]:
        first = key(name)
        await end(gateways[0], first, (await reserve(gateways[0], first)).stored, IN_PROGRESS)

    async def ask(database: Database, name: str) -> None:
        wanted = key(name)
        reserved = await reserve(database, wanted)
        if reserved.decision is KeyDecision.EXECUTE:
            with noting(wanted, reserved.stored):
                await effect(database, name)
            executed.append(name)

    for name in keys:
        await asyncio.gather(*(ask(database, name) for database in gateways for _ in range(2)))
    assert sorted(executed) == sorted(keys)
