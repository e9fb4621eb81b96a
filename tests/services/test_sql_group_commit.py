"""Writes that arrive together share a transaction, and those that nobody waits for give way."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit

numbers = sa.Table("numbers", sa.MetaData(), sa.Column("number", sa.Integer, primary_key=True))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database with the table."""
    made = Database(database_url)
    async with made.write() as connection:
        await connection.run_sync(numbers.metadata.create_all)
    yield made
    await made.close()


class Numbers:
    """Inserts numbers, and remembers which came together."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    async def insert(self, connection: AsyncConnection, items: list[int]) -> list[int]:
        self.batches.append(items)
        await connection.execute(sa.insert(numbers), [{"number": number} for number in items])
        return items


async def stored(database: Database) -> set[int]:
    async with database.read() as connection:
        return set((await connection.execute(sa.select(numbers.c.number))).scalars())


async def test_what_arrives_together_is_one_commit(database: Database) -> None:
    """The first is written at once; all that come meanwhile are written together."""
    commits, table = GroupCommit(database), Numbers()
    results = await asyncio.gather(*(commits.write(table.insert, number) for number in range(50)))
    assert results == list(range(50))
    assert len(table.batches) <= 2
    assert await stored(database) == set(range(50))


async def test_one_that_fails_fails_alone(database: Database) -> None:
    """Its company is written all the same."""
    commits, table = GroupCommit(database), Numbers()
    await commits.write(table.insert, 1)
    results = await asyncio.gather(
        *(commits.write(table.insert, number) for number in (1, 2, 3)), return_exceptions=True
    )
    assert [isinstance(result, sa.exc.IntegrityError) for result in results] == [True, False, False]
    assert await stored(database) == {1, 2, 3}


async def test_the_patient_gather_and_let_others_go_first(database: Database) -> None:
    """A write that somebody waits for, though it came last, is committed before them."""
    commits, background, foreground = GroupCommit(database), Numbers(), Numbers()
    done: list[str] = []

    async def write(what: str, table: Numbers, number: int, *, background: bool) -> None:
        await commits.write(table.insert, number, background=background)
        done.append(what)

    await asyncio.gather(
        *(write("later", background, number, background=True) for number in range(10)),
        write("now", foreground, 10, background=False),
    )
    assert done == ["now"] + ["later"] * 10
    assert len(background.batches) == 1


async def test_closing_waits_for_the_patient(database: Database) -> None:
    """Nothing that was handed in is forgotten."""
    commits, table = GroupCommit(database), Numbers()
    writing = asyncio.ensure_future(commits.write(table.insert, 1, background=True))
    await asyncio.sleep(0)
    await commits.close()
    assert writing.done()
    assert await stored(database) == {1}
