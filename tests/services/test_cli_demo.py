"""The demo's judgement: what it must call wrong, and what it puts up with."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.progress import Progress

from bellhop.cli.errors import CannotRun
from bellhop.demo import live, mail, newsletter, scores
from bellhop.demo.api import Api
from bellhop.demo.run import verdict
from bellhop.demo.scores import DemoRank, Game
from bellhop.demo.steps import StepResult, Stopwatch, System
from bellhop.local.mailbox import Mailbox, create_app
from tests.support.ports import lasting_ports

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def game(player: str, points: int, second: int) -> Game:
    """Return a game."""
    return Game(player, points, NOON + timedelta(seconds=second))


# Rankings.


def test_equal_best_games_share_a_rank_and_the_earlier_stands_before() -> None:
    """Ranks 1, 1, 3; a later equal game of one's own changes nothing."""
    played = [game("b", 5, 1), game("a", 5, 2), game("c", 3, 0), game("b", 5, 9), game("c", 1, 10)]
    assert scores.best_ranking(played) == [DemoRank(1, 1, "b", 5), DemoRank(2, 1, "a", 5), DemoRank(3, 3, "c", 3)]


def test_equally_many_games_stand_in_the_order_in_which_they_were_reached() -> None:
    """The time of a total is that of its last game."""
    played = [game("a", 0, 1), game("b", 0, 2), game("b", 0, 3), game("a", 0, 4), game("c", 0, 0)]
    assert scores.games_ranking(played) == [DemoRank(1, 1, "b", 2), DemoRank(2, 1, "a", 2), DemoRank(3, 3, "c", 1)]


def test_every_player_plays() -> None:
    """So the boards must have all of them."""
    played = scores.play("demo-1")
    assert len(played) == scores.GAMES
    assert len({one.player for one in played}) == scores.PLAYERS


# Live clients.

SENT = {"first": frozenset({"news"}), "second": frozenset({"team"}), "other": frozenset({"elsewhere"})}


def client(*seen: str) -> live.Client:
    """Return a client of two channels that has seen these events, at rising offsets."""
    made = live.Client("http://unused", "token", frozenset({"news", "team"}), None)
    made.seen = Counter(seen)
    made.sequence = [f"abcd:{offset}" for offset in range(len(seen))]
    return made


def judged(one: live.Client) -> StepResult:
    """Return what is found of one client."""
    result = StepResult("live")
    live.judge([one], SENT, result)
    return result


def test_each_once_in_order_is_right() -> None:
    """Nothing is wrong, and what is on foreign channels is not missed."""
    result = judged(client("first", "second"))
    assert (result.accepted, result.done, result.lost, result.doubled, result.wrong) == (2, 2, 0, 0, [])


@pytest.mark.parametrize(
    ("seen", "complaint"),
    [
        (("first",), "did not see 1"),
        (("first", "second", "second"), "saw 1 notifications twice"),
        (("first", "second", "other"), "channels that it does not follow"),
    ],
)
def test_what_a_client_must_not_see_or_miss(seen: tuple[str, ...], complaint: str) -> None:
    """Loss, doubles and foreign channels are wrong."""
    [sentence] = judged(client(*seen)).wrong
    assert complaint in sentence


def test_out_of_order_is_wrong() -> None:
    """Ids end with offsets, which must rise as numbers, not as text."""
    good, bad = client("first", "second"), client("first", "second")
    good.sequence = ["x:9", "x:10"]
    bad.sequence = ["x:10", "x:9"]
    assert judged(good).wrong == []
    assert "out of order" in judged(bad).wrong[0]


def test_a_gap_is_wrong() -> None:
    """Even when everything arrived: a client would have to start over."""
    one = client("first", "second")
    one.gaps = 1
    assert "missing" in judged(one).wrong[0]


# Mails: what the ledger says, compared with a real mailbox.


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application; give its URL."""
    import uvicorn

    [port] = lasting_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


def put(mailbox: Mailbox, task_id: str, run: str = "demo-1") -> None:
    """Put the mail of a task into the mailbox."""
    head = f"Message-ID: <{task_id}@bellhop.example>\r\nSubject: {run}: 17\r\nFrom: a@example.com\r\n\r\nx\r\n"
    mailbox.add("a@example.com", ["b@example.com"], head.encode())


async def judge(mailbox: Mailbox, tasks: dict[str, dict[str, Any] | None]) -> StepResult:
    """Return what the demo finds."""
    result = StepResult("mail")
    async with serving(create_app(mailbox)) as url:
        api = Api("mailbox", url, print)
        system = System(
            gateway=api, visitor=api, mailbox=api, notifier_url=None, run="demo-1", progress=Progress(disable=True)
        )
        await mail.judge(system, tasks, result, Stopwatch())
        await api.close()
    return result


SENT_TASK = {"state": "sent", "uncertain": False}


async def test_a_mail_in_the_mailbox_is_done() -> None:
    """Mails of other runs do not count."""
    mailbox = Mailbox()
    put(mailbox, "t1")
    put(mailbox, "t9", run="demo-2")
    result = await judge(mailbox, {"t1": SENT_TASK})
    assert (result.done, result.lost, result.doubled, result.wrong) == (1, 0, 0, [])


async def test_a_second_copy_is_counted_and_must_be_announced() -> None:
    """`uncertain` announces it; without that it is wrong."""
    mailbox = Mailbox()
    for task_id in ("t1", "t1", "t2", "t2", "t2"):
        put(mailbox, task_id)
    announced = await judge(mailbox, {"t1": SENT_TASK | {"uncertain": True}})
    assert (announced.doubled, announced.wrong) == (1, [])
    silent = await judge(mailbox, {"t2": SENT_TASK})
    assert silent.doubled == 2
    assert "not marked uncertain" in silent.wrong[0]


async def test_a_task_that_has_not_ended_is_lost() -> None:
    """It was accepted, so it must end."""
    result = await judge(Mailbox(), {"t1": None})
    assert result.lost == 1
    assert "1 mails have not ended, t1 for one" in result.wrong[0]


async def test_many_pages_of_mails_are_read() -> None:
    """More mails than one page holds, other runs' among them."""
    mailbox = Mailbox()
    tasks: dict[str, dict[str, Any] | None] = {f"t{number}": SENT_TASK for number in range(mail.PAGE + 20)}
    for number, task_id in enumerate(tasks):
        put(mailbox, task_id)
        if number % 50 == 0:
            put(mailbox, "foreign", run="demo-2")
    assert (await judge(mailbox, tasks)).lost == 0


async def test_mails_of_a_run_are_known_by_subject_or_recipient() -> None:
    """A mail that asks for confirmation says nothing of the run in its subject; it can be opened whole."""
    mailbox = Mailbox()
    put(mailbox, "t1")
    asked = b"Message-ID: <t2@x>\r\nSubject: Please confirm\r\nTo: demo-1-member-0@example.com\r\n\r\nhttps://x/c\r\n"
    mailbox.add("a@example.com", ["demo-1-member-0@example.com"], asked)
    put(mailbox, "t3", run="demo-2")
    async with serving(create_app(mailbox)) as url:
        box = mail.MailboxClient(Api("mailbox", url, print), "demo-1")
        found = (await box.look()).mails
        whole = await box.open(found[0])
        await box.api.close()
    assert [(one.task_id, one.to) for one in found] == [("t2", "demo-1-member-0@example.com"), ("t1", "")]
    assert whole is not None
    assert (whole["Subject"], whole.get_content().strip()) == ("Please confirm", "https://x/c")


def test_a_link_is_followed_at_the_gateway_that_the_demo_drives() -> None:
    """The links of mails have the public name, with whatever path a proxy has before it."""
    assert newsletter.path_of("https://news.example/sub/confirm?token=a_-b") == "/confirm?token=a_-b"


# Calls that outlive the death of a service.


async def test_a_call_is_made_again_under_the_same_key_until_it_is_answered() -> None:
    """A cut connection and a 503 are no answers; what was said on the way names the service."""
    keys: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        keys.append(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"idempotency-key")))
        if len(keys) == 2:
            writer.write(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        if len(keys) == 3:
            writer.write(b'HTTP/1.1 202 X\r\ncontent-length: 10\r\nconnection: close\r\n\r\n{"id":"x"}')
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    said: list[str] = []
    async with server:
        api = Api("gateway", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", said.append)
        assert await api.post("/v1/mail", {}, key="k") == {"id": "x"}
        await api.close()
    assert keys == [b'idempotency-key: "k"'] * 3
    assert len(said) == 2
    assert "the gateway does not answer" in said[0]
    assert "the gateway answers again" in said[1]


async def test_an_answer_that_says_no_is_told_and_not_repeated() -> None:
    """A 4xx will not become better; a wrong key has a sentence of its own."""
    calls = 0

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        nonlocal calls
        calls += 1
        status = 401 if scope["path"] == "/secret" else 422
        headers = [(b"content-type", b"application/problem+json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"detail": "The subject is missing."}'})

    async with serving(answer) as url:
        api = Api("gateway", url, print)
        with pytest.raises(CannotRun, match="The subject is missing"):
            await api.post("/v1/mail", {})
        with pytest.raises(CannotRun, match="BELLHOP_ADMIN_KEY"):
            await api.get("/secret")
        await api.close()
    assert calls == 2


def test_the_verdict_explains_doubles() -> None:
    """They are no fault, but nobody should have to guess what they are."""
    assert "nothing doubled" in verdict([StepResult("a", 1, 1)], 1.0)
    assert "RFC 1047" in verdict([StepResult("a", 1, 1, doubled=2)], 1.0)
