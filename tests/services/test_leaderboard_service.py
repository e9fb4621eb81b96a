"""The whole service: messages in, HTTP and announcements out, with a real broker."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import orjson
import pytest

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.scores import LeaderboardChanged
from bellhop.sql.migrations import migrate
from bellhop.web import tokens
from services.leaderboard.app import build
from services.leaderboard.settings import LeaderboardSettings
from tests.support import wait_until
from tests.support.broker import Vhost

KEY = secrets.token_hex(32)
AT = "2026-11-21T09:00:00Z"


class Service:
    """One running replica, and what a test does with it."""

    def __init__(self, amqp_url: str, database_url: str, **settings: Any) -> None:
        self.database_url = database_url
        self.settings = LeaderboardSettings(
            amqp_url=amqp_url,
            database_url=database_url,
            token_key=KEY,
            pull_seconds=0.1,
            refresh_seconds=0.1,
            **settings,
        )
        self.app = build(self.settings)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "Service":
        await migrate(self.settings.database_url.get_secret_value(), "services.leaderboard")
        await self._stack.enter_async_context(self.app.router.lifespan_context(self.app))
        transport = httpx.ASGITransport(self.app)
        self.http = await self._stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://leaderboard")
        )
        self.allow("leaderboards:read", "leaderboards:write")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def allow(self, *scopes: str, audience: str = "leaderboard", expires_in: int = 60) -> None:
        token = tokens.mint(KEY, "gateway", expires_in, audience, scopes=scopes)
        self.http.headers["Authorization"] = f"Bearer {token}"

    async def get(self, path: str, status: int = 200) -> Any:
        response = await self.http.get(f"/v1/leaderboards{path}")
        assert response.status_code == status, response.text
        return response.json()

    async def shown(self, path: str, description: str = "the board appears") -> Any:
        """Wait until `path` is there."""

        async def look() -> Any:
            response = await self.http.get(f"/v1/leaderboards{path}")
            return response.json() if response.status_code == 200 else None

        return await wait_until(look, description=description)


async def mark(publisher: Publisher, until: str) -> None:
    """Publish a mark, as a gateway does."""
    message = Message(orjson.dumps({"until": until}), Envelope(type="scores.mark", source="bellhop/gateway"))
    await publisher.publish("work", "leaderboard.scores", message)


@pytest.fixture
async def service(vhost: Vhost, tmp_path: Any) -> AsyncIterator[Service]:
    async with Service(vhost.amqp_url, f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db") as service:
        await wait_until(lambda: service.app.state.leaderboard.standings.loaded)
        yield service


@pytest.fixture
async def publisher(vhost: Vhost) -> AsyncIterator[Publisher]:
    connection = Connection(vhost.amqp_url, "the test's publisher")
    publisher = Publisher(connection)
    await connection.start()
    await wait_until(lambda: publisher.failure is None)
    yield publisher
    await connection.close()


def scores(*entries: tuple[str, float], board: str = "b") -> bytes:
    return orjson.dumps(
        {"scores": [{"board": board, "player": player, "score": score, "at": AT} for player, score in entries]}
    )


async def submit(publisher: Publisher, body: bytes, id: str | None = None, **message: Any) -> None:
    envelope = Envelope(type="score.submitted", source="test", **({"id": id} if id else {}))
    await publisher.publish("work", "leaderboard.scores", Message(body, envelope, **message))


async def test_a_score_on_the_queue_becomes_a_place_on_the_board(service, publisher):
    """From the exchange to HTTP, with everything that an entry says."""
    await submit(publisher, scores(("ann", 5), ("bob", 7), ("cy", 5)))
    answer = await service.shown("/b")
    assert answer["entries"] == [
        {"position": 1, "rank": 1, "percentile": 100.0, "player": "bob", "score": 7.0, "at": AT},
        {"position": 2, "rank": 2, "percentile": 66.6667, "player": "ann", "score": 5.0, "at": AT},
        {"position": 3, "rank": 2, "percentile": 66.6667, "player": "cy", "score": 5.0, "at": AT},
    ]
    assert (answer["board"], answer["season"], answer["players"], answer["next"]) == ("b", None, 3, None)


async def test_answers_say_how_fresh_they_are(service, publisher):
    """`as_of` is what the latest applied mark said, at every replica and after a restart; nothing else moves it."""
    assert (await service.get(""))["as_of"] is None
    await mark(publisher, "2026-11-21T09:00:00Z")
    await submit(publisher, scores(("ann", 5)))
    await mark(publisher, "2026-11-21T08:00:00Z")

    async def settled() -> bool:
        answer = await service.get("/b") if "b" in service.app.state.leaderboard.standings.boards else {}
        return (answer.get("pending"), answer.get("as_of")) == (0, "2026-11-21T09:00:00Z")

    await wait_until(settled)
    answer = await service.get("/b")
    assert answer["lag_seconds"] > 0
    async with Service(service.settings.amqp_url.get_secret_value(), service.database_url) as standby:
        shown = await standby.shown("/b")
        assert (shown["as_of"], shown["pending"]) == ("2026-11-21T09:00:00Z", None)


async def test_as_of_stands_still_while_a_batch_is_in_hand(service, publisher, monkeypatch: pytest.MonkeyPatch):
    """What a mark says holds only when all is applied that came before it; meanwhile it is pending."""
    standings = service.app.state.leaderboard.standings
    go_on = asyncio.Event()
    apply = standings._store.save_results

    async def slowly(*arguments: Any) -> None:
        await go_on.wait()
        await apply(*arguments)

    monkeypatch.setattr(standings._store, "save_results", slowly)
    await submit(publisher, scores(("ann", 5)))
    await mark(publisher, "2026-11-21T09:00:00Z")

    async def pending() -> bool:
        answer = await service.get("")
        assert answer["as_of"] is None
        return answer["pending"] == 1

    await wait_until(pending)
    go_on.set()

    async def moved() -> bool:
        return (await service.get(""))["as_of"] == "2026-11-21T09:00:00Z"

    await wait_until(moved)
    assert (await service.get("/b"))["players"] == 1


async def test_pages_follow_each_other(service, publisher):
    """`next` of one page is `after` of the next, until it is null."""
    await submit(publisher, scores(*((f"p{n}", 100 - n) for n in range(5))))
    await service.shown("/b")
    names, after = [], 0
    while after is not None:
        answer = await service.get(f"/b?limit=2&after={after}")
        names += [entry["player"] for entry in answer["entries"]]
        after = answer["next"]
    assert names == ["p0", "p1", "p2", "p3", "p4"]


async def test_players_are_found_alone_with_neighbours_and_among_friends(service, publisher):
    """One player, the players around one, and any set of players."""
    await submit(publisher, scores(*((f"p{n}", 100 - n) for n in range(5))))
    player = await service.shown("/b/players/p2")
    assert (player["position"], player["rank"], player["percentile"], player["players"]) == (3, 3, 60.0, 5)
    around = await service.get("/b/players/p2/around?count=1")
    assert [entry["player"] for entry in around["entries"]] == ["p1", "p2", "p3"]
    response = await service.http.post("/v1/leaderboards/b/ranks", json={"players": ["p4", "nobody", "p0", "p4"]})
    assert [entry["position"] for entry in response.json()["entries"]] == [1, 5]
    assert response.json()["missing"] == ["nobody"]


async def test_boards_are_listed_with_their_settings(service, publisher):
    """Those that were set up and those that began with a score, page by page."""
    settings = {"order": "ascending", "operator": "last", "season": "weekly", "hidden": False}
    response = await service.http.put("/v1/leaderboards/laps", json=settings)
    assert (response.status_code, response.json()) == (201, settings)
    await submit(publisher, scores(("ann", 5)))
    await service.shown("/b")
    first = await service.get("?limit=1")
    rest = await service.get(f"?after={first['next']}")
    assert [board["board"] for board in first["boards"] + rest["boards"]] == ["b", "laps"]
    assert rest["boards"][0] | settings == rest["boards"][0]
    assert rest["boards"][0]["current"].startswith("20")
    assert rest["next"] is None


async def test_last_takes_the_later_item_of_a_request(service, publisher):
    """The gateway gives all scores of a request the same time, so their sequence says which is the last."""
    await service.http.put("/v1/leaderboards/b", json={"operator": "last"})
    await submit(publisher, scores(("ann", 10), ("ann", 7), ("ann", 3)))
    assert (await service.shown("/b/players/ann"))["score"] == 3.0


async def test_settings_of_a_board_with_scores_stand(service, publisher):
    """Another operator is a 409 that says what to do; the same settings again are a 200."""
    await submit(publisher, scores(("ann", 5)))
    await service.shown("/b")
    assert (await service.http.put("/v1/leaderboards/b", json={})).status_code == 200
    response = await service.http.put("/v1/leaderboards/b", json={"operator": "sum"})
    assert response.status_code == 409
    assert "delete this one first" in response.json()["detail"]


async def test_an_erased_player_is_not_found(service, publisher):
    """204, and then 404."""
    await submit(publisher, scores(("ann", 5), ("bob", 6)))
    await service.shown("/b/players/ann")
    assert (await service.http.delete("/v1/leaderboards/b/players/ann")).status_code == 204
    assert "pending" in await service.get("/b/players/ann", 404)
    assert (await service.http.delete("/v1/leaderboards/b/players/ann")).status_code == 404
    assert (await service.get("/b"))["players"] == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/nowhere/players/p", 404),
        ("/b/players/nobody", 404),
        ("/b/players/nobody/around", 404),
        ("/b?limit=0", 422),
        ("/b?limit=1001", 422),
        ("/b?after=-1", 422),
        ("/b?season=2026-W47", 422),
        ("/weekly?season=2026-11", 422),
        ("/weekly?season=2026-W47", 200),
        ("/b%20c", 422),
    ],
)
async def test_wrong_requests_get_a_problem_that_says_why(service, path, status):
    """Never a stack trace, never an empty 200 for something that is not there."""
    await service.http.put("/v1/leaderboards/b", json={})
    await service.http.put("/v1/leaderboards/weekly", json={"season": "weekly"})
    answer = await service.get(path, status)
    assert status == 200 or answer["detail"]


async def test_only_tokens_for_the_leaderboard_open_it(service):
    """No token, another audience, an expired token: 401. A scope that is missing: 403."""
    service.allow("leaderboards:read")
    await service.get("")
    assert (await service.http.put("/v1/leaderboards/b", json={})).status_code == 403
    service.allow("leaderboards:read", audience="stream")
    await service.get("", 401)
    service.allow("leaderboards:read", expires_in=-120)
    await service.get("", 401)
    del service.http.headers["Authorization"]
    await service.get("", 401)


async def test_a_bad_message_goes_to_the_dead_letters_alone(service, publisher, vhost):
    """Its neighbours in the same batch are applied, each once."""
    await service.http.put("/v1/leaderboards/b", json={"operator": "sum"})
    await asyncio.gather(
        *(submit(publisher, scores((f"p{n}", 1))) for n in range(5)),
        submit(publisher, b'{"scores": [{"board": "b"}]}', id="bad"),
        *(submit(publisher, scores((f"p{n}", 1))) for n in range(5)),
    )

    async def dead() -> Any:
        return await vhost.get("dead-letters")

    letter = await wait_until(dead, description="the bad message is a dead letter")
    assert letter.headers["cloudEvents:id"] == "bad"
    assert "scores.0.player" in letter.headers["bellhop-error"]

    async def applied() -> bool:
        entries = (await service.get("/b"))["entries"]
        return [entry["score"] for entry in entries] == [2.0] * 5

    await wait_until(applied)
    assert await vhost.get("dead-letters") is None


async def test_scores_on_a_board_too_many_become_dead_letters_alone(vhost, publisher, tmp_path):
    """The other scores of their message count; the letter holds what was refused, under an id of its own."""
    url = f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db"
    async with Service(vhost.amqp_url, url, boards_limit=1) as service:
        await service.shown("", "the service is ready")
        await service.http.put("/v1/leaderboards/b", json={"operator": "sum"})
        body = orjson.loads(scores(("ann", 1), ("bob", 2)))
        body["scores"][1]["board"] = "too-many"
        await submit(publisher, orjson.dumps(body), id="mixed")

        async def dead() -> Any:
            return await vhost.get("dead-letters")

        letter = await wait_until(dead, description="the refused score is a dead letter")
        assert letter.headers["cloudEvents:id"] != "mixed"
        assert "too-many" in letter.headers["bellhop-error"]
        (refused,) = orjson.loads(letter.body)["scores"]
        assert (refused["board"], refused["player"], refused["score"]) == ("too-many", "bob", 2.0)
        assert (await service.shown("/b/players/ann"))["score"] == 1.0
        await service.get("/too-many", 404)
        assert (await service.http.put("/v1/leaderboards/too-many", json={})).status_code == 422


async def test_a_deleted_board_is_not_found_until_it_begins_again(service, publisher):
    """DELETE is safe to repeat; a later score begins an empty board."""
    await submit(publisher, scores(("ann", 5), ("bob", 6)))
    await service.shown("/b")
    for _ in range(2):
        assert (await service.http.delete("/v1/leaderboards/b")).status_code == 204
        await service.get("/b", 404)
    assert (await service.http.delete("/v1/leaderboards/never")).status_code == 404
    await submit(publisher, scores(("cy", 1)))
    assert [entry["player"] for entry in (await service.shown("/b"))["entries"]] == ["cy"]


async def test_a_hidden_board_is_read_by_its_name_only(service, publisher, vhost):
    """It is listed on demand, and its changes are not announced."""
    channel = await vhost.channel()
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind("notifications")
    await service.http.put("/v1/leaderboards/b", json={"hidden": True})
    await submit(publisher, scores(("ann", 5)))
    await service.shown("/b/players/ann")
    await submit(publisher, scores(("ann", 5), board="c"))

    async def announced() -> Any:
        return await queue.get(fail=False, no_ack=True)

    change = LeaderboardChanged.model_validate_json((await wait_until(announced)).body)
    assert change.board == "c"
    assert [board["board"] for board in (await service.get(""))["boards"]] == ["c"]
    assert [board["board"] for board in (await service.get("?hidden=true"))["boards"]] == ["b", "c"]


async def test_changes_are_announced_to_everybody(service, publisher, vhost):
    """A `leaderboard.changed` on the exchange `notifications` carries the top, and who entered and left it."""
    channel = await vhost.channel()
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind("notifications")
    await submit(publisher, scores(*((f"p{n}", n) for n in range(10))))

    async def announced() -> Any:
        return await queue.get(fail=False, no_ack=True)

    first = await wait_until(announced)
    await submit(publisher, scores(("new", 100)))
    second = await wait_until(announced)
    assert first.headers["cloudEvents:type"] == "leaderboard.changed"
    change = LeaderboardChanged.model_validate_json(second.body)
    assert (change.board, change.season, change.changed, change.players) == ("b", None, 1, 11)
    assert (change.entered, change.left) == (["new"], ["p0"])
    assert [place.position for place in change.top] == list(range(1, 11))


async def test_scores_published_while_the_service_was_down_are_applied(vhost, publisher, tmp_path):
    """And what was applied before the restart is still there."""
    url = f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db"
    async with Service(vhost.amqp_url, url) as service:
        await submit(publisher, scores(("ann", 5)))
        await service.shown("/b")
    await submit(publisher, scores(("bob", 6)))
    async with Service(vhost.amqp_url, url) as service:
        await service.shown("/b/players/bob")
        assert (await service.get("/b"))["players"] == 2


async def test_one_replica_applies_and_another_takes_over(vhost, publisher, tmp_path):
    """Both show every score; when the active one stops, the other goes on with exact sums."""
    url = f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db"
    async with AsyncExitStack() as stack:
        active = await stack.enter_async_context(Service(vhost.amqp_url, url))
        await active.shown("", "the first replica is ready")
        await active.http.put("/v1/leaderboards/b", json={"operator": "sum"})
        async with Service(vhost.amqp_url, url) as standby:
            await submit(publisher, scores(("ann", 5)))
            await active.shown("/b/players/ann")
            await standby.shown("/b/players/ann")
            await stack.aclose()
            await submit(publisher, scores(("ann", 6)))

            async def counted() -> bool:
                return (await standby.get("/b/players/ann"))["score"] == 11.0

            await wait_until(counted)


async def test_a_service_without_a_broker_reads_but_is_not_ready(tmp_path):
    """It says what it waits for, and `pending` is unknown."""
    async with Service("amqp://nobody:x@127.0.0.1:1/", f"sqlite+aiosqlite:///{tmp_path}/l.db") as service:
        answer = await service.shown("")
        assert answer["pending"] is None
        response = await service.http.get("/readyz")
        assert response.status_code == 503
        assert "no connection to RabbitMQ" in response.json()["checks"]["broker"]
