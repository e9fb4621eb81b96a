"""Names of boards and players in paths, all the way through the gateway: over real sockets, as bytes."""

import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bellhop.sql.migrations import migrate
from services.leaderboard.app import build
from services.leaderboard.settings import LeaderboardSettings
from tests.services.gateway_support import RunningGateway, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.serving import Answer, exchange, request, serving

KEY = secrets.token_hex(32)

ODD = {
    "percent": "%25",
    "question mark": "%3F",
    "number sign": "%23",
    "space": "%20",
    "plus": "a+b",
    "letters beyond ASCII": "%C3%A9va",
    "bytes that are no UTF-8": "%FF%FE",
    "a percent that encodes nothing": "50%",
    "an encoded percent before digits": "%252F",
    "one dot": ".",
    "two dots": "..",
    "two encoded dots": "%2E%2E",
    "up and away": "..%2F..%2Fmetrics",
    "line end": "a%0D%0AX-Injected:%20yes",
    "NUL": "a%00b",
    "129 letters": "a" * 129,
    "a thousand letters": "a" * 1000,
    "backslash": "a%5Cb",
    "semicolon": "a%3Bb",
    "double slash": "a//b",
}
"""Names that no board and no player has, as they stand in a path."""


@dataclass
class System:
    """A gateway before a leaderboard."""

    gateway: RunningGateway

    def ask(self, path: str, method: str = "GET", body: bytes = b"") -> Answer:
        """Send `path` as it is, in bytes: clients would mend it on the way."""
        headers = {"authorization": self.gateway.admin.headers["authorization"]}
        if body:
            headers["content_type"] = "application/json"
        return exchange(urlsplit(self.gateway.url).port or 0, request(method, path, body, **headers))


@pytest.fixture
async def system(vhost: Vhost, tmp_path: Path) -> AsyncIterator[System]:
    database = f"sqlite+aiosqlite:///{tmp_path}/leaderboard.db"
    await migrate(database, "services.leaderboard")
    settings = LeaderboardSettings(
        amqp_url=vhost.amqp_url, database_url=database, token_key=KEY, pull_seconds=0.1, refresh_seconds=0.1
    )
    with serving(build(settings)) as port:
        async with running_gateway(
            vhost,
            f"sqlite+aiosqlite:///{tmp_path}/gateway.db",
            leaderboard_url=f"http://127.0.0.1:{port}",
            token_key=KEY,
        ) as gateway:
            yield System(gateway)


@pytest.mark.parametrize("kind", ODD)
async def test_a_name_that_nobody_has_is_a_problem_and_never_another_path(system: System, kind: str) -> None:
    """404 or 422, as a document and without a header of the client's making, wherever the name stands."""
    name = ODD[kind]
    asked = [
        (f"/v1/leaderboards/{name}", "GET", b""),
        (f"/v1/leaderboards/{name}/players/ada", "GET", b""),
        (f"/v1/leaderboards/chess/players/{name}", "GET", b""),
        (f"/v1/leaderboards/chess/players/{name}/around", "GET", b""),
        (f"/v1/leaderboards/{name}/ranks", "POST", b'{"players": ["ada"]}'),
        (f"/v1/leaderboards/{name}", "PUT", b"{}"),
        (f"/v1/leaderboards/{name}", "DELETE", b""),
        (f"/v1/leaderboards/chess/players/{name}", "DELETE", b""),
    ]
    for path, method, body in asked:
        answer = system.ask(path, method, body)
        assert answer.status in (404, 422), (method, path, answer)
        assert answer.headers["content-type"] == "application/problem+json"
        assert "x-injected" not in answer.headers


async def test_every_name_that_is_taken_can_be_read_back(system: System) -> None:
    """A score that is answered 202 has a path, whichever letters its names are made of."""
    names = ["a..b", "user:42", "ada@example.com", "A-1_b.c", "0", "x" * 128]
    scores = [{"board": f"b{name}"[:128], "player": name, "score": 1} for name in names]
    answer = await system.gateway.admin.post("/v1/scores", json=scores)
    assert answer.status_code == 202, answer.text
    for score in scores:
        path = f"/v1/leaderboards/{score['board']}/players/{score['player']}"
        shown = await wait_until(
            lambda path=path: (answer := system.ask(path)).status == 200 and answer, description=f"{path} is there"
        )
        assert shown.document["player"] == score["player"]


@pytest.mark.parametrize("field", ["board", "player"])
async def test_a_slash_in_a_name_is_refused_with_a_sentence(system: System, field: str) -> None:
    """It could never be read: no two programs agree on what %2F means in a path."""
    score = {"board": "chess", "player": "ada", "score": 1} | {field: "a/b"}
    answer = await system.gateway.admin.post("/v1/scores", json=[score])
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"#/0/{field}"
    assert error["detail"] == (
        "must be 1 to 128 ASCII letters, digits and . _ : @ -, and begin with a letter or a digit"
    )


async def test_a_score_event_with_a_slash_is_refused_too(system: System) -> None:
    """Whichever way a score comes in, the rule is the same."""
    answer = await system.gateway.admin.post(
        "/v1/events",
        json={"scores": [{"board": "a/b", "player": "ada", "score": 1}]},
        headers={"ce-specversion": "1.0", "ce-id": "1", "ce-source": "tests", "ce-type": "score.submitted"},
    )
    assert answer.status_code == 422, answer.text
    assert "1 to 128" in answer.text


async def test_a_board_whose_first_scores_wait_is_empty_and_not_missing(system: System) -> None:
    """From the 202 on the board can be read; a name that no score began is 404, and so is a deleted board."""
    answer = await system.gateway.admin.post("/v1/scores", json={"board": "fresh", "player": "ada", "score": 1})
    assert answer.status_code == 202
    first = system.ask("/v1/leaderboards/fresh")
    assert (first.status, first.document["board"]) == (200, "fresh")
    assert {"as_of", "lag_seconds", "pending", "players", "entries", "next"} <= first.document.keys()
    assert system.ask("/v1/leaderboards/never").status == 404
    await wait_until(lambda: system.ask("/v1/leaderboards/fresh").document["players"] == 1)
    assert system.ask("/v1/leaderboards/fresh", "DELETE").status == 204
    assert system.ask("/v1/leaderboards/fresh").status == 404


async def test_as_of_follows_what_the_gateway_accepted(system: System) -> None:
    """A gateway marks the queue, so that after a score was accepted `as_of` passes it once the score is counted."""
    answer = await system.gateway.admin.post("/v1/scores", json={"board": "fresh", "player": "ada", "score": 1})
    accepted = datetime.now(UTC)
    assert answer.status_code == 202

    def passed() -> bool:
        document = system.ask("/v1/leaderboards/fresh").document
        return document["as_of"] is not None and datetime.fromisoformat(document["as_of"]) > accepted

    await wait_until(passed, 20, "as_of passes the score")
    assert system.ask("/v1/leaderboards/fresh").document["players"] == 1
