"""A database that hangs ends the wait: within its limit, as unavailable, and with nothing left behind."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql import database as module
from bellhop.sql.database import Database, DatabaseConflict, DatabaseUnavailable
from bellhop.sql.group_commit import GroupCommit
from tests.support import wait_until
from tests.support.postgresql import find_binaries, frozen, private_server


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of these tests; what is true of one second is true of five."""
    monkeypatch.setattr(module, "CHECKOUT_SECONDS", 0.6)
    monkeypatch.setattr(module, "LIMIT_SECONDS", 0.5)
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 300)
    monkeypatch.setitem(module.SERVER_SETTINGS, "lock_timeout", "300ms")


@pytest.fixture(scope="module")
def own_server() -> Iterator[dict[str, Any]]:
    """A PostgreSQL that may be frozen."""
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with private_server() as server:
        yield server


@pytest.fixture
async def database(own_server: dict[str, Any]) -> AsyncIterator[Database]:
    database = Database(f"{own_server['url']}/postgres")
    yield database
    await database.close()


async def ask(database: Database, limit: float = 0.5) -> None:
    async with database.read(limit) as connection:
        await connection.execute(sa.text("SELECT 1"))


async def test_a_frozen_server_is_unavailable_in_time(database: Database, own_server: dict[str, Any]) -> None:
    """With connections that were open, and for more readers than there are connections; afterwards all is well."""
    await asyncio.gather(*(ask(database) for _ in range(8)))
    with frozen(own_server["pid"]):
        began = time.monotonic()
        answers = await asyncio.gather(*(ask(database) for _ in range(40)), return_exceptions=True)
        took = time.monotonic() - began
    assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    assert took < 5, "of 0.6 s for a connection and 0.6 s for the statement; the rest is a slow machine"
    await wait_until(lambda: _answers(database))
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def _answers(database: Database) -> bool:
    try:
        await ask(database)
    except DatabaseUnavailable:
        return False
    return True


async def test_a_commit_that_hangs_holds_nobody_else(database: Database, own_server: dict[str, Any]) -> None:
    """Who comes while a commit hangs fails with it, and does not begin a wait of its own."""
    commits = GroupCommit(database)

    async def apply(connection: AsyncConnection, items: list[int]) -> list[int]:
        await connection.execute(sa.text("SELECT 1"))
        return items

    module_slow = pytest.MonkeyPatch()
    module_slow.setattr("bellhop.sql.group_commit.SLOW_SECONDS", 0.1)
    try:
        assert await commits.write(apply, 0) == 0
        with frozen(own_server["pid"]):
            first = asyncio.create_task(commits.write(apply, 1))
            await asyncio.sleep(0)
            later = [asyncio.create_task(commits.write(apply, number)) for number in range(2, 5)]
            done, _ = await asyncio.wait([first], timeout=5)
            assert done
            await asyncio.sleep(0)
            assert all(task.done() for task in later)
            answers = await asyncio.gather(first, *later, return_exceptions=True)
        assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    finally:
        module_slow.undo()


async def test_a_lock_that_another_holds_is_unavailable(database: Database) -> None:
    """Waiting for a lock ends on the server, with its own words; the connection stays."""
    async with database.write() as connection:
        await connection.execute(sa.text("CREATE TABLE IF NOT EXISTS locked (n int)"))
    async with database.write() as connection:
        await connection.execute(sa.text("LOCK TABLE locked"))
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            async with database.read() as other:
                await other.execute(sa.text("SELECT * FROM locked"))


async def test_a_statement_that_takes_too_long_is_unavailable(database: Database) -> None:
    """Nothing of it is left on the server."""
    with pytest.raises(DatabaseUnavailable):
        async with database.read(0.5) as connection:
            await connection.execute(sa.text("SELECT pg_sleep(60)"))
    running = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
    )

    async def gone() -> bool:
        async with database.read(5) as connection:
            return (await connection.execute(running)).scalar() == 0

    await wait_until(gone)


async def test_a_longer_limit_holds_where_it_is_given(database: Database) -> None:
    """What may take long says so, and has connections of its own."""
    async with database.read(30) as connection:
        await connection.execute(sa.text("SELECT pg_sleep(1)"))


async def test_no_free_connection_is_unavailable(database: Database) -> None:
    """The pool's limit is no mistake of ours."""

    async def hold() -> None:
        async with database.read():
            await asyncio.sleep(0.55)

    answers = await asyncio.gather(*(hold() for _ in range(60)), return_exceptions=True)
    assert {type(answer) for answer in answers} <= {DatabaseUnavailable, type(None)}
    assert DatabaseUnavailable in {type(answer) for answer in answers}


async def test_a_deadlock_is_tried_again(database: Database) -> None:
    """A transaction that the database rolled back for another is repeated, and its caller sees nothing of it."""
    commits = GroupCommit(database)
    attempts = []

    async def apply(connection: AsyncConnection, items: list[int]) -> list[int]:
        attempts.append(1)
        if len(attempts) < 3:
            await connection.execute(
                sa.text("DO $$ BEGIN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END $$")
            )
        return items

    assert await commits.write(apply, 7) == 7
    assert len(attempts) == 3


async def test_a_deadlock_is_told_from_other_mistakes(database: Database) -> None:
    """Whoever does not write by group commit learns that repeating may help."""
    with pytest.raises(DatabaseConflict):
        async with database.write() as connection:
            await connection.execute(sa.text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"))


async def test_a_statement_that_was_prepared_before_a_migration_is_tried_again(database: Database) -> None:
    """As when a replica of another version changes a table during an upgrade."""
    commits = GroupCommit(database)
    table = f"changes_{secrets.token_hex(4)}"

    async def apply(connection: AsyncConnection, items: list[int]) -> list[Any]:
        return [(await connection.execute(sa.text(f"SELECT * FROM {table}"))).all() for _ in items]

    other = Database(database.engine.url.render_as_string(hide_password=False))
    async with other.write() as connection:
        await connection.execute(sa.text(f"CREATE TABLE {table} (name varchar(9))"))
    assert await commits.write(apply, 1) == []
    async with other.write() as connection:
        await connection.execute(sa.text(f'ALTER TABLE {table} ALTER COLUMN name TYPE text COLLATE "C"'))
    assert await commits.write(apply, 1) == []
    await other.close()


async def test_a_cancelled_request_gives_its_connection_back(database: Database) -> None:
    """In the middle of a statement, without waiting for its end."""
    task = asyncio.create_task(_sleep(database))
    await wait_until(lambda: database.engine.pool.checkedout() == 1)  # type: ignore[attr-defined]
    task.cancel()
    await asyncio.wait([task], timeout=2)
    assert task.cancelled()
    await wait_until(lambda: database.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]


async def _sleep(database: Database) -> None:
    async with database.read(0.5) as connection:
        await connection.execute(sa.text("SELECT pg_sleep(60)"))


async def test_sqlite_is_bounded_too(tmp_path: Any) -> None:
    """Another process that keeps the file locked, a writer of ours that does not end, an endless statement."""
    url = f"sqlite+aiosqlite:///{tmp_path}/test.db"
    ours, others = Database(url), Database(url)
    async with others.write(5):
        with pytest.raises(DatabaseUnavailable):
            async with ours.write(0.5):
                pass
    async with ours.write(5):
        with pytest.raises(DatabaseUnavailable, match="busy"):
            async with ours.write(0.2):
                pass
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    with pytest.raises(DatabaseUnavailable, match="interrupted"):
        async with ours.read(0.1) as connection:
            await connection.execute(sa.text(endless))
    await ask(ours)
    await ours.close()
    await others.close()


async def test_closing_does_not_wait_for_a_frozen_server(own_server: dict[str, Any]) -> None:
    """A service that is told to stop stops, and leaves no socket open."""
    database = Database(f"{own_server['url']}/postgres")
    await asyncio.gather(*(ask(database) for _ in range(4)))
    with frozen(own_server["pid"]):
        async with asyncio.timeout(10):
            await database.close()
    await asyncio.sleep(0)
    assert not any(not connection.is_closed() for connection in database._open)
