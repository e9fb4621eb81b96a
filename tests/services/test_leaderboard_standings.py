"""Scores to the database and back, on SQLite and PostgreSQL."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from sqlalchemy import text

from bellhop.amqp.message import Delivery
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.scores import BoardSettings, Operator, Order, Season
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.migrations import migrate
from services.leaderboard.scores import read
from services.leaderboard.scoring import to_micros
from services.leaderboard.standings import BoardInUse, Standings, UnknownBoard
from services.leaderboard.store import Store

AT = datetime(2026, 11, 21, 9, tzinfo=UTC)
SUM = BoardSettings(operator=Operator.SUM)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.leaderboard")
    database = Database(database_url)
    yield database
    await database.close()


async def replica(database: Database) -> Standings:
    """Start another replica on the same database."""
    standings = Standings(Store(database), past_seasons=2)
    await standings.refresh()
    return standings


def message(
    *scores: tuple[str, float], board: str = "b", id: str | None = None, at: datetime = AT, **fields
) -> Delivery:
    """A message with a score for each (player, score), a second apart."""
    body = [
        {"board": board, "player": player, "score": score, "at": (at + timedelta(seconds=n)).isoformat()}
        for n, (player, score) in enumerate(scores)
    ]
    envelope = Envelope(type="score.submitted", source="test")
    return Delivery(orjson.dumps({"scores": body}), envelope, 1, {}, "leaderboard.scores", "events", "", False)


def top(standings: Standings, board: str = "b") -> list[tuple[int, str, float]]:
    ranking = standings.current(board)
    return [(entry.rank, entry.player, entry.score) for entry in ranking.page(0, len(ranking))]


async def test_applied_scores_are_readable_and_survive_a_restart(database):
    """After `apply` the ranking shows them, and so does a process that starts afterwards."""
    standings = await replica(database)
    changes = await standings.apply(read([message(("ann", 5), ("bob", 7.25), ("cy", 5))]))
    assert top(standings) == [(1, "bob", 7.25), (2, "ann", 5.0), (2, "cy", 5.0)]
    assert [(change.board, change.season, change.changed) for change in changes] == [("b", "", 3)]
    assert top(await replica(database)) == top(standings)


async def test_a_message_counts_once(database):
    """A redelivered message, in the same batch, in a later one or on another replica, adds nothing."""
    standings = await replica(database)
    await standings.configure("b", SUM)
    once = message(("ann", 5), ("ann", 1))
    await standings.apply(read([once, once]))
    assert await standings.apply(read([once])) == []
    assert await (await replica(database)).apply(read([once, message(("ann", 10))])) != []
    await standings.refresh()
    assert top(standings) == [(1, "ann", 16.0)]


async def test_a_score_with_an_id_counts_once_on_its_board(database):
    """A client that sends a result again in another message need not fear for the sum."""
    standings = await replica(database)
    for board in ("b", "c"):
        await standings.configure(board, SUM)
    for delivery in [_with_score_id(message(("bob", 4), board=board), "result-1") for board in ("b", "b", "c")]:
        await standings.apply(read([delivery, _with_score_id(delivery, "result-1")]))
    assert top(standings) == [(1, "bob", 4.0)]
    assert top(standings, "c") == [(1, "bob", 4.0)]


def _with_score_id(delivery: Delivery, id: str) -> Delivery:
    document = orjson.loads(delivery.body)
    for score in document["scores"]:
        score["id"] = id
    envelope = Envelope(type="score.submitted", source="test")
    return Delivery(orjson.dumps(document), envelope, 1, {}, "leaderboard.scores", "events", "", False)


async def test_many_shuffled_duplicated_messages_give_the_exact_sums(database):
    """A thousand scores for 50 players on three boards, delivered twice in any order, over two replicas."""
    chance = random.Random(7)
    replicas = [await replica(database), await replica(database)]
    boards = [f"board-{n}" for n in range(3)]
    for board in boards:
        await replicas[0].configure(board, SUM)
    expected: dict[tuple[str, str], float] = {}
    messages = []
    for _ in range(100):
        board = chance.choice(boards)
        scores = [(f"p{chance.randrange(50)}", float(chance.randrange(-5, 100))) for _ in range(10)]
        for player, score in scores:
            expected[board, player] = expected.get((board, player), 0.0) + score
        messages.append(message(*scores, board=board))
    messages += messages
    chance.shuffle(messages)
    while messages:
        size = chance.randrange(1, 20)
        batch, messages = messages[:size], messages[size:]
        await chance.choice(replicas).apply(read(batch))
    for one in [*replicas, await replica(database)]:
        await one.refresh()
        shown = {(board, player): score for board in boards for _, player, score in top(one, board)}
        assert shown == expected


async def test_sums_are_exact_decimals_over_replicas_and_restarts(database):
    """Also where a double has no digit left for the addend, and where a total came back to zero."""
    one, other = await replica(database), await replica(database)
    await one.configure("b", SUM)
    for score in (0.1, 0.2, 1e15, 0.3):
        for standings in (one, other):
            await standings.apply(read([message(("ann", score), ("bob", 5), ("bob", -5))]))
    await (await replica(database)).apply(read([message(("ann", -2e15), ("bob", 0))]))
    late = AT - timedelta(days=1)
    await one.apply(read([message(("bob", 3), at=late)]))
    for standings in (one, other, await replica(database)):
        await standings.refresh()
        assert top(standings) == [(1, "bob", 3.0), (2, "ann", 1.2)]
        assert standings.current("b").entry("bob").at > to_micros(late) + 10_000_000


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_replica_of_an_earlier_version_reads_and_no_longer_writes(database):
    """It runs until the end of an upgrade. What it could not write stays on the queue, and its error says: wait."""
    standings = await replica(database)
    await standings.apply(read([message(("ann", 5))]))
    for statement in (
        "INSERT INTO rankings (board, season, players, version, erasures) VALUES ('c', '', 0, 0, 0)",
        "UPDATE rankings SET players = 2, version = version + 1",
        "INSERT INTO boards (board, \"order\", operator, season) VALUES ('c', 'descending', 'sum', 'none')",
    ):
        with pytest.raises(DatabaseUnavailable, match="can no longer write"):
            async with database.write() as connection:
                await connection.execute(text(statement))
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT board, players FROM rankings"))).all() == [("b", 1)]


async def test_traces_of_binary_fractions_are_taken_off_existing_sums(empty_database_url):
    """A total of an earlier version ties with the same total of this one; other boards keep every bit."""
    await migrate(empty_database_url, "services.leaderboard", to="0004")
    database = Database(empty_database_url)
    try:
        async with database.write() as connection:
            for statement in (
                "INSERT INTO boards (board, \"order\", operator, season) VALUES ('b', 'descending', 'sum', 'none')",
                "INSERT INTO boards (board, \"order\", operator, season) VALUES ('c', 'descending', 'best', 'none')",
                "INSERT INTO rankings (id, board, season, players, version, erasures) VALUES (1, 'b', '', 1, 1, 0)",
                "INSERT INTO rankings (id, board, season, players, version, erasures) VALUES (2, 'c', '', 1, 1, 0)",
                "INSERT INTO results (ranking, player, score, at, version) VALUES (1, 'ann', 0.6000000000000001, 1, 1)",
                "INSERT INTO results (ranking, player, score, at, version) VALUES (2, 'ann', 0.6000000000000001, 1, 1)",
                "UPDATE progress SET version = 1, last_ranking = 2",
            ):
                await connection.execute(text(statement))
        await migrate(empty_database_url, "services.leaderboard")
        standings = await replica(database)
        await standings.apply(read([message(("bob", 0.1), ("bob", 0.2), ("bob", 0.3))]))
        assert top(standings) == [(1, "ann", 0.6), (1, "bob", 0.6)]
        assert top(standings, "c") == [(1, "ann", 0.6000000000000001)]
    finally:
        await database.close()


async def test_what_one_replica_applied_others_show_after_a_refresh(database):
    """New players, better scores, new boards and erased players all arrive."""
    active, standby = await replica(database), await replica(database)
    await active.apply(read([message(("ann", 1), ("bob", 2), ("cy", 3))]))
    await standby.refresh()
    await active.apply(read([message(("ann", 9), ("dan", 4)), message(("eve", 1), board="new")]))
    await active.erase("b", "cy")
    await standby.refresh()
    assert top(standby) == top(active) == [(1, "ann", 9.0), (2, "dan", 4.0), (3, "bob", 2.0)]
    assert top(standby, "new") == [(1, "eve", 1.0)]


async def test_a_replica_that_takes_over_catches_up_first(database):
    """It need not have refreshed: a best score it never saw is not overwritten by a lower one."""
    active, standby = await replica(database), await replica(database)
    await standby.apply(read([message(("ann", 1))]))
    await active.apply(read([message(("ann", 9), ("bob", 3))]))
    await standby.apply(read([message(("ann", 5), ("bob", 4))]))
    assert top(standby) == [(1, "ann", 9.0), (2, "bob", 4.0)]


async def test_nothing_shows_that_was_not_committed(database):
    """When the transaction fails, memory stays where the database is, and the same batch succeeds later."""
    standings = await replica(database)
    await standings.apply(read([message(("ann", 1))]))
    batch = read([message(("ann", 2), ("bob", 3))])
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE results RENAME TO elsewhere"))
    with pytest.raises(Exception, match="results"):
        await standings.apply(batch)
    assert top(standings) == [(1, "ann", 1.0)]
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO results"))
    await standings.apply(batch)
    assert top(standings) == [(1, "bob", 3.0), (2, "ann", 2.0)]


async def test_a_late_score_goes_to_the_season_it_was_reached_in(database):
    """And the past season stays readable, also by a process that started later."""
    standings = await replica(database)
    await standings.configure("b", BoardSettings(season=Season.WEEKLY))
    await standings.apply(
        read([message(("ann", 5), at=now()), message(("bob", 7), at=datetime(2020, 1, 1, tzinfo=UTC))])
    )
    assert top(standings) == [(1, "ann", 5.0)]
    for one in (standings, await replica(database)):
        past = await one.past("b", "2020-W01")
        assert [entry.player for entry in past.page(0, 10)] == ["bob"]
        assert len(await one.past("b", "2019-W01")) == 0


async def test_few_past_seasons_stay_in_memory_and_all_stay_readable(database):
    """More seasons than are kept: each is read back from the database as it was, and late scores still join it."""
    standings = await replica(database)
    await standings.configure("b", BoardSettings(season=Season.DAILY, operator=Operator.SUM))
    days = [datetime(2020, 1, day, tzinfo=UTC) for day in range(1, 6)]
    for _ in range(2):
        await standings.apply(read([message(("ann", day.day), at=day) for day in days]))
    for day in days:
        past = await standings.past("b", f"2020-01-0{day.day}")
        assert [entry.score for entry in past.page(0, 10)] == [2.0 * day.day]


async def test_ascending_boards_count_the_lowest(database):
    """The least time wins a race."""
    standings = await replica(database)
    await standings.configure("b", BoardSettings(order=Order.ASCENDING))
    await standings.apply(read([message(("ann", 61.5), ("bob", 59.25), ("ann", 60))]))
    assert top(await replica(database)) == [(1, "bob", 59.25), (2, "ann", 60.0)]


async def test_a_board_with_scores_keeps_its_settings(database):
    """Saying the same again is fine; anything else is refused until the board is empty."""
    standings = await replica(database)
    assert await standings.configure("b", BoardSettings()) is True
    await standings.apply(read([message(("ann", 1))]))
    assert await standings.configure("b", BoardSettings()) is False
    with pytest.raises(BoardInUse):
        await standings.configure("b", SUM)
    await standings.erase("b", "ann")
    assert await standings.configure("b", BoardSettings(order=Order.ASCENDING)) is False
    await standings.apply(read([message(("ann", 2), ("bob", 1))]))
    assert top(standings) == [(1, "bob", 1.0), (2, "ann", 2.0)]


async def test_an_erased_player_is_gone_from_all_seasons(database):
    """From memory and from the database; other players stay."""
    standings = await replica(database)
    await standings.configure("b", BoardSettings(season=Season.DAILY))
    for at in (now(), datetime(2020, 1, 1, tzinfo=UTC)):
        await standings.apply(read([message(("ann", 5), ("bob", 7), at=at)]))
    assert await standings.erase("b", "ann") == 2
    assert await standings.erase("b", "ann") == 0
    for one in (standings, await replica(database)):
        assert top(one) == [(1, "bob", 7.0)]
        assert (await one.past("b", "2020-01-01")).entry("ann") is None
    with pytest.raises(UnknownBoard):
        await standings.erase("nowhere", "ann")


async def test_readers_do_not_wait_for_a_batch(database):
    """While a batch is applied the event loop goes on, and the ranking is the one before or the one after."""
    standings = await replica(database)
    batch = read([message(*((f"p{n}", float(n)) for n in range(1000))) for _ in range(20)])
    applying = asyncio.create_task(standings.apply(batch))
    seen = set()
    while not applying.done():
        seen.add(len(standings.current("b")) if "b" in standings.boards else 0)
        await asyncio.sleep(0)
    await applying
    assert seen <= {0, 1000}
    assert len(standings.current("b")) == 1000


async def test_every_bit_of_a_score_survives_the_database(database):
    """Scores are doubles: what comes back is the same number, not one beside it."""
    chance = random.Random(11)
    scores = [(secrets.token_hex(4), chance.uniform(-1, 1) * 2.0 ** chance.randrange(-60, 53)) for _ in range(500)]
    await (await replica(database)).apply(read([message(*scores)]))
    assert {(player, score) for _, player, score in top(await replica(database))} == set(scores)


async def test_pruning_forgets_old_ids_only(database):
    """What was applied long ago no longer takes space; what was applied lately still counts once."""
    standings, store = await replica(database), Store(database)
    await standings.configure("b", SUM)
    delivery = _with_score_id(message(("ann", 1)), "result")
    await standings.apply(read([delivery]))
    assert await store.prune(to_micros(now() - timedelta(hours=1))) == 0
    assert await standings.apply(read([delivery])) == []
    assert await store.prune(to_micros(now() + timedelta(hours=1))) == 2
