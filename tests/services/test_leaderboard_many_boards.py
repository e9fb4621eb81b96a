"""Many boards: what a batch and a refresh cost, counted in statements, on SQLite and PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy import event

from bellhop.amqp.message import Delivery
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.scores import BoardSettings, Operator, Order
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.leaderboard.scores import read, read_in_parts
from services.leaderboard.small import SMALL, SmallRanking
from services.leaderboard.standings import Standings
from services.leaderboard.store import Store

AT = "2026-11-21T09:00:00Z"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.leaderboard")
    database = Database(database_url)
    yield database
    await database.close()


async def replica(database: Database) -> Standings:
    standings = Standings(Store(database), past_seasons=2)
    await standings.refresh()
    return standings


def message(*scores: tuple[str, str, float]) -> Delivery:
    body = [{"board": board, "player": player, "score": score, "at": AT} for board, player, score in scores]
    envelope = Envelope(type="score.submitted", source="test")
    return Delivery(orjson.dumps({"scores": body}), envelope, 1, {}, "leaderboard.scores", "events", "", False)


def on_boards(count: int, score: float = 1) -> Delivery:
    return message(*((f"board-{n:04d}", "ann", score) for n in range(count)))


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Collect the statements that `database` executes meanwhile."""
    statements: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            statements.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)


def of_results(statements: list[str]) -> list[str]:
    return [statement for statement in statements if "INSERT INTO results" in statement]


async def test_new_boards_are_made_by_a_constant_number_of_statements(database):
    """A batch with 300 new boards takes as many statements as one with 3, but for the rows of results."""
    standings = await replica(database)
    with counted(database) as few:
        await standings.apply(read([message(("a", "ann", 1), ("b", "ann", 1), ("c", "ann", 1))]))
    with counted(database) as many:
        await standings.apply(read([on_boards(300)]))
    assert len(many) - len(of_results(many)) == len(few) - len(of_results(few))
    assert len(of_results(many)) < 20
    assert len(standings.boards) == 303


async def test_scores_on_known_boards_read_nothing_but_the_version(database):
    """What this replica wrote itself, it need not read again; only the version and what waits for a retry."""
    standings = await replica(database)
    await standings.apply(read([on_boards(100)]))
    with counted(database) as statements:
        await standings.apply(read([on_boards(100, score=2)]))
    assert [one for one in statements if one.startswith("SELECT") and "pg_advisory" not in one] == [
        one for one in statements if one.startswith("SELECT") and ("progress" in one or "postponed_messages" in one)
    ]


async def test_a_refresh_costs_one_statement_where_nothing_changed(database):
    """However many boards there are."""
    standings = await replica(database)
    await standings.apply(read([on_boards(200)]))
    with counted(database) as statements:
        await standings.refresh()
    assert len(statements) == 1


async def test_a_refresh_reads_many_changed_boards_in_few_statements(database):
    """What another replica applied to 300 boards arrives, and the boards that did not change stay as they are."""
    active, standby = await replica(database), await replica(database)
    await active.apply(read([on_boards(300), message(("still", "bob", 5))]))
    await standby.refresh()
    still = standby.current("still")
    await active.apply(read([on_boards(299, score=7)]))
    with counted(database) as statements:
        await standby.refresh()
    assert len(statements) <= 5
    assert standby.current("still") is still
    assert standby.current("board-0298").entry("ann").score == 7.0
    assert standby.current("board-0299").entry("ann").score == 1.0


async def test_a_ranking_grows_out_of_the_small_form_and_back(database):
    """Readers, the other replica and a restart see the same ranking on both sides of the limit."""
    active, standby = await replica(database), await replica(database)
    everybody = [(f"p{n:04d}", float(n)) for n in range(2 * SMALL)]
    for begin in range(0, len(everybody), SMALL // 2):
        await active.apply(read([message(*(("b", *one) for one in everybody[begin : begin + SMALL // 2]))]))
        await standby.refresh()
        shown = [(entry.player, entry.score) for entry in active.current("b").page(0, 1000)]
        assert shown == sorted(everybody[: begin + SMALL // 2], reverse=True)
        for one in (standby, await replica(database)):
            assert [(entry.player, entry.score) for entry in one.current("b").page(0, 1000)] == shown
    for player, _ in everybody[: SMALL + 1]:
        await active.erase("b", player)
    again = await replica(database)
    assert isinstance(again.current("b"), SmallRanking)
    assert again.current("b").top(1000) == active.current("b").top(1000)


async def test_an_empty_board_that_is_set_up_otherwise_is_so_at_every_replica(database):
    """Order and operator of a board whose players were erased change, also where its old order was in memory."""
    active, standby = await replica(database), await replica(database)
    await active.apply(read([message(("b", "ann", 1), ("b", "bob", 2))]))
    await standby.refresh()
    for player in ("ann", "bob"):
        await active.erase("b", player)
    await active.configure("b", BoardSettings(order=Order.ASCENDING, operator=Operator.SUM))
    await standby.apply(read([message(("b", "ann", 5), ("b", "bob", 3), ("b", "ann", 1))]))
    await active.refresh()
    for one in (active, standby, await replica(database)):
        assert one.current("b").top(2) == ["bob", "ann"]
        assert one.current("b").entry("ann").score == 6.0


async def test_a_board_of_another_replica_can_be_erased_from_immediately(database):
    """Changing asks the database, not what this replica has seen so far."""
    one, other = await replica(database), await replica(database)
    await one.apply(read([message(("b", "ann", 1), ("b", "bob", 2))]))
    assert await other.erase("b", "ann") == 1
    await one.refresh()
    assert one.current("b").top(2) == other.current("b").top(2) == ["bob"]


def test_a_batch_is_split_by_its_work():
    """Scores on many boards fill a transaction sooner than as many on one; no message is split, and none is lost."""
    alone = [message(*(("b", f"p{n}", n) for n in range(100))) for _ in range(10)]
    spread = [on_boards(100) for _ in range(10)]
    assert len(read_in_parts(alone, 2000)) == 1
    parts = read_in_parts(spread, 2000)
    assert len(parts) == 10
    assert [message for part in parts for message in part.messages] == read(spread).messages


async def test_a_database_of_the_first_version_keeps_its_boards(empty_database_url):
    """After the upgrade a board goes on from where it was, and what was applied is not applied again."""
    await migrate(empty_database_url, "services.leaderboard", to="0001")
    database = Database(empty_database_url)
    try:
        async with database.write() as connection:
            for statement in (
                "INSERT INTO boards (board, \"order\", operator, season) VALUES ('b', 'descending', 'sum', 'none')",
                "INSERT INTO rankings (id, board, season, players, version, erasures) VALUES (7, 'b', '', 2, 12, 1)",
                "INSERT INTO results (ranking, player, score, at, version) VALUES (7, 'ann', 5.5, 1, 12)",
                "INSERT INTO results (ranking, player, score, at, version) VALUES (7, 'bob', 3, 2, 4)",
            ):
                await connection.execute(sa.text(statement))
        await migrate(empty_database_url, "services.leaderboard")
        standings = await replica(database)
        await standings.apply(read([message(("b", "bob", 4), ("c", "cy", 1))]))
        for one in (standings, await replica(database)):
            assert [(entry.player, entry.score) for entry in one.current("b").page(0, 9)] == [("bob", 7), ("ann", 5.5)]
            assert one.current("c").top(1) == ["cy"]
    finally:
        await database.close()
