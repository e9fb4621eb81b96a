"""Quotas for new boards: counted before scores are accepted, by key, over several gateways."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.migrations import migrate
from bellhop.web.auth import Caller, Scope
from bellhop.web.peer import Peer
from bellhop.web.problems import Problem
from services.gateway.leaderboards.board_names import BoardNames
from services.gateway.leaderboards.boards import Boards
from services.gateway.settings import Settings

WRITER = Caller("1", "game", frozenset([Scope.SCORES_WRITE]))
MANAGER = Caller("2", "studio", frozenset([Scope.SCORES_WRITE, Scope.LEADERBOARDS_WRITE]))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    yield database
    await database.close()


def gateway(database: Database, leaderboard: Any = None, **quotas: int) -> Boards:
    """Return the part of a gateway that admits; `leaderboard` answers its requests."""
    values = {"amqp_url": "amqp://x", "database_url": "x", "token_key": "k" * 40, "admin_key": "x"}
    http = httpx.AsyncClient(transport=httpx.MockTransport(leaderboard or (lambda _: httpx.Response(503))))
    peer = Peer("leaderboard", "http://leaderboard", "k" * 40, http, subject="gateway")
    boards = Boards(BoardNames(database), Settings.model_validate(values | quotas), peer)
    boards.complete = leaderboard is None
    return boards


async def refusal(boards: Boards, caller: Caller, *names: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await boards.admit(caller, names)
    return caught.value


async def test_a_key_begins_so_many_boards_an_hour(database):
    """The next one is a 429 that names it and begins none of its request; boards that are there go on."""
    boards = gateway(database, boards_per_hour=3)
    await boards.admit(WRITER, ["a", "b"])
    problem = await refusal(boards, WRITER, "b", "c", "d")
    assert (problem.status, "The board d " in str(problem.detail)) == (429, True)
    assert 3500 < int(problem.headers["Retry-After"]) <= 3600
    await boards.admit(WRITER, ["a", "b", "c"])
    await refusal(boards, WRITER, "d")


async def test_a_key_begins_so_many_boards_in_all(database):
    """Also at another gateway, which has none of them in memory; a deletion makes room."""
    boards, other = (gateway(database, boards_per_key=2) for _ in range(2))
    await boards.admit(WRITER, ["a", "b"])
    await other.admit(WRITER, ["a"])
    assert (await refusal(other, WRITER, "c")).status == 422
    await boards.note_deleted("a")
    await other.admit(WRITER, ["c"])


async def test_quotas_of_one_key_are_not_those_of_another(database):
    """Boards that others began, or that were there before, are nobody else's."""
    boards = gateway(database, boards_per_hour=2, boards_per_key=2)
    await boards.note_set_up("set-up", MANAGER)
    await BoardNames(database).add_existing(["found"])
    await boards.admit(WRITER, ["a", "b", "set-up", "found"])
    await boards.admit(Caller("3", "other", frozenset([Scope.SCORES_WRITE])), ["a", "c", "d"])


async def test_who_may_set_boards_up_is_bound_by_the_limit_of_all(database):
    """Quotas keep keys that write scores from setting boards up in this way."""
    boards = gateway(database, boards_per_hour=1, boards_per_key=1, boards_limit=4)
    await boards.admit(MANAGER, ["a", "b", "c"])
    await boards.admit(WRITER, ["d"])
    for caller in (MANAGER, WRITER):
        problem = await refusal(boards, caller, "e")
        assert (problem.status, "4 boards" in str(problem.detail)) == (422, True)


async def test_gateways_that_race_do_not_exceed_a_quota(database):
    """Counting and noting are one step of the database."""
    boards = [gateway(database, boards_per_hour=5) for _ in range(4)]
    answers = await asyncio.gather(
        *(one.admit(WRITER, [f"{number}-{n}"]) for number, one in enumerate(boards) for n in range(4)),
        return_exceptions=True,
    )
    assert answers.count(None) == 5


async def test_boards_from_before_are_read_from_the_leaderboard(database):
    """Page by page; until then a quota refuses nothing for good."""
    pages = {"": (["a", "b"], "b"), "b": (["c"], None)}

    def leaderboard(request: httpx.Request) -> httpx.Response:
        names, after = pages[request.url.params["after"]]
        return httpx.Response(200, json={"boards": [{"board": name} for name in names], "next": after})

    boards = gateway(database, leaderboard, boards_per_hour=0)
    assert (await refusal(boards, WRITER, "a")).status == 503
    await boards.read_existing()
    await boards.admit(WRITER, ["a", "b", "c"])
    assert (await refusal(boards, WRITER, "d")).status == 429


async def test_scores_for_known_boards_need_no_database(database, monkeypatch: pytest.MonkeyPatch):
    """What was looked up once is remembered, for longer where the database is unavailable."""

    async def unavailable(*_: object) -> set[str]:
        raise DatabaseUnavailable("the database does not answer")

    boards = gateway(database)
    await boards.admit(WRITER, ["a"])
    monkeypatch.setattr("services.gateway.leaderboards.boards.monotonic", lambda: float("inf"))
    monkeypatch.setattr(BoardNames, "known", unavailable)
    await boards.admit(WRITER, ["a"])
    with pytest.raises(DatabaseUnavailable):
        await boards.admit(WRITER, ["a", "b"])
