"""Boards are hidden and deleted: at every replica, for good, on SQLite and PostgreSQL."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import orjson
import pytest
import sqlalchemy as sa

from bellhop.amqp.message import Delivery
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.scores import ACCEPTED_AT, BoardSettings, Operator, Season
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.leaderboard.scores import read
from services.leaderboard.standings import BoardInUse, Standings, TooManyBoards, UnknownBoard
from services.leaderboard.store import Store

SUM = BoardSettings(operator=Operator.SUM)
AT = datetime(2026, 11, 21, 9, tzinfo=UTC)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.leaderboard")
    database = Database(database_url)
    yield database
    await database.close()


async def replica(database: Database, **more: int) -> Standings:
    standings = Standings(Store(database), past_seasons=2, **more)
    await standings.refresh()
    return standings


def message(*scores: tuple[str, float], board: str = "b", accepted: datetime | None = None, **fields) -> Delivery:
    """A message that a gateway accepted at `accepted`: an hour from now, unless something else is said."""
    body = [{"board": board, "player": player, "score": score, "at": AT} | fields for player, score in scores]
    headers = {ACCEPTED_AT: (accepted or now() + timedelta(hours=1)).isoformat()}
    envelope = Envelope(type="score.submitted", source="test")
    return Delivery(orjson.dumps({"scores": body}), envelope, 1, headers, "leaderboard.scores", "events", "", False)


def top(standings: Standings, board: str = "b") -> list[tuple[str, float]]:
    return [(entry.player, entry.score) for entry in standings.current(board).page(0, 100)]


async def test_a_deleted_board_is_gone_from_every_replica(database):
    """With all its seasons, from memory and from the database; other boards stay."""
    one, other = await replica(database), await replica(database)
    await one.configure("b", BoardSettings(season=Season.DAILY))
    await one.apply(read([message(("ann", 1)), message(("bob", 2), at=now()), message(("cy", 3), board="c")]))
    await other.refresh()
    await other.past("b", "2026-11-21")
    await one.delete("b")
    await other.refresh()
    for replica_ in (one, other, await replica(database)):
        assert replica_.page("", 10) == ["c"]
        with pytest.raises(UnknownBoard):
            replica_.current("b")
        with pytest.raises(UnknownBoard):
            await replica_.past("b", "2026-11-21")
        assert top(replica_, "c") == [("cy", 3.0)]


async def test_deleting_again_is_fine_and_a_board_that_never_was_is_unknown(database):
    """At the replica that did it, at one that did not see it yet, and after a restart."""
    one, other = await replica(database), await replica(database)
    await one.apply(read([message(("ann", 1))]))
    await one.delete("b")
    for replica_ in (one, other, await replica(database)):
        await replica_.delete("b")
        with pytest.raises(UnknownBoard):
            await replica_.delete("never")


async def test_a_deleted_board_begins_again_empty(database):
    """Under other settings, at every replica, and the ids of its former scores count again, once."""
    one, other = await replica(database), await replica(database)
    await one.configure("b", SUM)
    await one.apply(read([message(("ann", 5), id="game-1"), message(("bob", 7))]))
    await other.refresh()
    await other.delete("b")
    await other.configure("b", SUM)
    for _ in range(2):
        await one.apply(read([message(("ann", 1), id="game-1"), message(("ann", 1), id="game-1")]))
    await other.refresh()
    for replica_ in (one, other, await replica(database)):
        assert top(replica_) == [("ann", 1.0)]


async def test_scores_accepted_before_the_deletion_do_not_bring_a_board_back(database):
    """They were on their way when it was deleted; what is accepted later begins the board."""
    standings = await replica(database)
    await standings.apply(read([message(("ann", 1))]))
    await standings.delete("b")
    early = message(("ann", 2), accepted=now() - timedelta(minutes=1))
    await standings.apply(read([early, message(("cy", 3), board="c", accepted=now() - timedelta(minutes=1))]))
    assert standings.page("", 10) == ["c"]
    await standings.apply(read([message(("bob", 4))]))
    for one in (standings, await replica(database)):
        await one.apply(read([early]))
        assert top(one) == [("bob", 4.0)]


async def test_the_results_of_a_deleted_board_are_deleted_part_by_part(database, monkeypatch: pytest.MonkeyPatch):
    """In transactions of bounded size, and those of the board that has its name now stay."""
    monkeypatch.setattr("services.leaderboard.store.PRUNE_BATCH_ROWS", 10)
    standings, store = await replica(database), Store(database)
    await standings.apply(read([message(*((f"p{n}", n) for n in range(35)))]))
    await standings.delete("b")
    await standings.apply(read([message(("ann", 1))]))
    assert await store.discard() == 35
    assert await store.discard() == 0
    async with database.read() as connection:
        assert await connection.scalar(sa.text("SELECT count(*) FROM results")) == 1
    assert top(await replica(database)) == [("ann", 1.0)]


async def test_a_hidden_board_is_listed_only_on_demand(database):
    """It goes on counting; hiding and showing need no empty board, other settings do."""
    one, other = await replica(database), await replica(database)
    for board in ("a", "b", "c"):
        await one.apply(read([message(("ann", 1), board=board)]))
    assert await one.configure("b", BoardSettings(hidden=True)) is False
    with pytest.raises(BoardInUse):
        await one.configure("b", BoardSettings(hidden=True, operator=Operator.LAST))
    await one.apply(read([message(("ann", 2))]))
    await other.refresh()
    for replica_ in (one, other, await replica(database)):
        assert replica_.page("", 2) == ["a", "c"]
        assert replica_.page("", 2, hidden=True) == ["a", "b"]
        assert (replica_.is_hidden("a"), replica_.is_hidden("b")) == (False, True)
        assert top(replica_) == [("ann", 2.0)]
    await one.configure("b", BoardSettings())
    assert one.page("", 9) == ["a", "b", "c"]


async def test_there_is_a_limit_to_boards(database):
    """New ones beyond it are refused by name; known boards go on, and a deletion makes room."""
    standings = await replica(database, boards_limit=2)
    await standings.apply(read([message(("ann", 1), board=board) for board in ("a", "b")]))
    assert standings.refused(["a", "x", "b", "y", "x"]) == {"x", "y"}
    with pytest.raises(TooManyBoards):
        await standings.configure("x", SUM)
    await standings.delete("a")
    assert standings.refused(["x", "b", "y"]) == {"y"}


async def test_old_deletions_are_forgotten_with_the_inbox(database):
    """A row for each deletion must not stay for good."""
    standings, store = await replica(database), Store(database)
    await standings.apply(read([message(("ann", 1))]))
    await standings.delete("b")
    await store.prune(round((now() + timedelta(hours=1)).timestamp() * 1_000_000))
    with pytest.raises(UnknownBoard):
        await (await replica(database)).delete("b")
