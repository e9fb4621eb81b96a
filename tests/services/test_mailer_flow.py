"""A mail from its queue to the mailbox, with a real broker, a real SMTP server and both databases."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import CancelTask, MailTask, mail_document
from bellhop.sql.database import Database
from services.mailer.app import build
from services.mailer.store import Inbox, Kept, Result
from tests.services.mailer_support import DROP, ScriptedRelay, mailer_settings
from tests.support import SmtpServer, Vhost, wait_until

logging.getLogger("aio_pika").setLevel(logging.ERROR)


class Running:
    """A mailer at work, and what goes in and comes out of it."""

    def __init__(self, app: FastAPI, vhost: Vhost) -> None:
        self.app = app
        self.vhost = vhost
        self.outcomes: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def put(self, queue: str, body: bytes, type: str = "mail.requested", **changes: Any) -> None:
        envelope = Envelope(type=type, source="/tests", **changes.pop("envelope", {}))
        message = Message(body, envelope, **changes)
        await self.vhost.publish("work", queue, body, headers=to_headers(message))

    async def mail(self, task_id: str = "t-1", *, round: int = 1, attempt: int = 1, **fields: Any) -> None:
        fields = {"to": "ada@example.com", "subject": "Hi", "text": "Hello", "lane": "normal"} | fields
        task = MailTask.model_validate({"task_id": task_id, "round": round, "owner": "key-1"} | fields)
        await self.put(task.lane.queue, json.dumps(mail_document(task)).encode(), attempt=attempt)

    async def cancel(self, task_id: str) -> None:
        body = CancelTask(task_id=task_id, round=1).model_dump_json().encode()
        await self.put("mail.cancel", body, "mail.cancelled")

    async def outcome(self, count: int = 1, timeout: float = 10) -> dict[str, Any]:
        """Wait for the outcome number `count` and return it."""

        async def arrived() -> bool:
            while (message := await self.vhost.get("gateway.outcomes")) is not None:
                self.outcomes.append(json.loads(message.body))
                self.keys.append(str(message.routing_key))
            return len(self.outcomes) >= count

        await wait_until(arrived, timeout, f"{count} outcomes")
        return self.outcomes[count - 1]

    async def dead_letter(self) -> Any:
        return await wait_until(lambda: self.vhost.get("dead-letters"), description="a dead letter")


Start = Callable[..., Any]


@pytest.fixture
def start(vhost: Vhost, database_url: str) -> Start:
    @asynccontextmanager
    async def run(port: int, **changes: Any) -> AsyncIterator[Running]:
        urls = {"amqp_url": vhost.amqp_url, "database_url": database_url, "shutdown_seconds": 2.0}
        app = build(mailer_settings(port, **urls | changes))
        async with app.router.lifespan_context(app):

            async def ready() -> bool:
                return set((await app.state.ready()).values()) == {"ok"}

            await wait_until(ready, description="the mailer to be ready")
            yield Running(app, vhost)

    return run


@pytest.fixture
async def mailer(start: Start, smtp_server: SmtpServer) -> AsyncIterator[Running]:
    async with start(smtp_server.port) as running:
        yield running


@pytest.mark.parametrize("lane", ["urgent", "normal", "bulk"])
async def test_a_mail_is_sent_and_reported(mailer: Running, smtp_server: SmtpServer, lane: str) -> None:
    """One mail with a fixed Message-ID, one outcome that says what the relay answered."""
    await mailer.mail(lane=lane)
    outcome = await mailer.outcome()
    (mail,) = smtp_server.mails
    assert mail.recipients == ["ada@example.com"]
    assert mail.message["Message-ID"] == "<t-1@bellhop.example>"
    assert mailer.keys == [f"mail.{lane}.sent"]
    del outcome["at"]
    assert outcome == {
        "task_id": "t-1",
        "round": 1,
        "attempt": 1,
        "state": "sent",
        "code": 250,
        "enhanced": "2.0.0",
        "reply": "2.0.0 OK",
        "relay": f"127.0.0.1:{smtp_server.port}",
        "message_id": "<t-1@bellhop.example>",
        "uncertain": False,
        "owner": "key-1",
        "lane": lane,
    }


async def test_a_task_that_comes_again_is_reported_again_and_not_sent_again(
    mailer: Running, smtp_server: SmtpServer
) -> None:
    """One copy, whatever the broker delivers twice."""
    await mailer.mail()
    first = await mailer.outcome()
    await mailer.mail()
    assert await mailer.outcome(2) == first
    assert len(smtp_server.mails) == 1


async def test_two_copies_at_the_same_time_make_one_mail(mailer: Running, smtp_server: SmtpServer) -> None:
    """The second waits until the first is done."""
    smtp_server.hold.clear()
    await mailer.mail()
    await mailer.mail()
    smtp_server.hold.set()
    await mailer.outcome(2)
    assert len(smtp_server.mails) == 1


async def test_urgent_mail_overtakes_a_newsletter(start: Start, smtp_server: SmtpServer) -> None:
    """Some connections are always free for it, however slow the mails before it are."""
    smtp_server.delay = 0.1
    async with start(smtp_server.port, smtp_connections=5) as mailer:
        for number in range(40):
            await mailer.mail(f"bulk-{number}", lane="bulk")
        await wait_until(lambda: smtp_server.mails)
        await mailer.mail("urgent", lane="urgent", to="urgent@example.com")
        await wait_until(lambda: smtp_server.to("urgent@example.com"))
        assert len(smtp_server.mails) < 30
        await mailer.outcome(41)


async def test_another_round_is_another_mail(mailer: Running, smtp_server: SmtpServer) -> None:
    """Somebody asked for it: with the same Message-ID."""
    await mailer.mail()
    await mailer.mail(round=2)
    await mailer.outcome(2)
    assert {mail.message["Message-ID"] for mail in smtp_server.to("ada@example.com")} == {"<t-1@bellhop.example>"}
    assert len(smtp_server.mails) == 2


async def test_a_transient_refusal_is_retried(mailer: Running, smtp_server: SmtpServer) -> None:
    """It waits on the ladder, reported with the time of the next attempt, and then goes out."""
    smtp_server.data_replies = ["451 4.3.0 not now"]
    await mailer.mail()
    outcome = await mailer.outcome()
    assert (outcome["state"], outcome["code"]) == ("retrying", 451)
    assert "retry_at" in outcome
    assert (await mailer.outcome(2, timeout=15))["state"] == "sent"
    assert (await mailer.outcome(2))["attempt"] == 2
    assert len(smtp_server.mails) == 1


async def test_a_greylisted_mail_waits_five_minutes_at_least(mailer: Running, smtp_server: SmtpServer) -> None:
    """It goes to the rung of ten minutes."""
    smtp_server.data_replies = ["451 4.7.1 greylisted"]
    await mailer.mail()
    await mailer.outcome()
    await wait_until(lambda: mailer.vhost.depth("retry.10m"))


async def test_a_permanent_refusal_fails_at_once(mailer: Running, smtp_server: SmtpServer) -> None:
    """A failed mail is a result: one attempt, no dead letter, and the connection serves the next mail."""
    smtp_server.recipient_replies["bad@example.com"] = ["550 5.1.1 no such user"]
    await mailer.mail("t-1", to="bad@example.com")
    await mailer.mail("t-2")
    await mailer.outcome(2)
    outcomes = {outcome["task_id"]: outcome for outcome in mailer.outcomes}
    assert outcomes["t-1"]["state"] == "failed"
    assert outcomes["t-1"]["enhanced"] == "5.1.1"
    assert outcomes["t-2"]["state"] == "sent"
    assert await mailer.vhost.depth("dead-letters") == 0


async def test_when_the_attempts_are_spent_the_mail_failed(mailer: Running, smtp_server: SmtpServer) -> None:
    """The last transient refusal is final."""
    smtp_server.data_replies = ["451 4.3.0 not now"]
    await mailer.mail(attempt=8)
    outcome = await mailer.outcome()
    assert (outcome["state"], outcome["attempt"]) == ("failed", 8)
    assert "retry_at" not in outcome


async def test_a_template_that_lacks_a_value_fails_with_file_and_line(mailer: Running, smtp_server: SmtpServer) -> None:
    """No half-filled mail goes out."""
    await mailer.mail(template="welcome", data={}, subject=None, text=None)
    outcome = await mailer.outcome()
    assert outcome["state"] == "failed"
    assert "welcome.mail, line 2" in outcome["reply"]
    assert not smtp_server.mails


async def test_a_template_is_filled(mailer: Running, smtp_server: SmtpServer) -> None:
    """Subject, text and HTML come from the file."""
    await mailer.mail(template="welcome", data={"name": "Ada <3"}, subject=None, text=None)
    await mailer.outcome()
    message = smtp_server.mails[0].message
    html = message.get_body(("html",))
    assert message["Subject"] == "Welcome, Ada <3"
    assert html is not None
    assert "Ada &lt;3" in html.get_content()


async def test_what_is_no_task_is_a_dead_letter(mailer: Running) -> None:
    """With the reason."""
    await mailer.put("mail.normal", b'{"task_id": "t-1"}')
    letter = await mailer.dead_letter()
    assert letter.headers["bellhop-error"] == "not a MailTask: owner: Field required"


async def test_a_cancelled_task_is_not_begun(mailer: Running, smtp_server: SmtpServer) -> None:
    """The cancellation may come before the task."""
    await mailer.cancel("t-1")
    assert (await mailer.outcome())["state"] == "cancelled"
    await mailer.mail()
    outcome = await mailer.outcome(2)
    assert (outcome["state"], outcome["attempt"]) == ("cancelled", 0)
    assert not smtp_server.mails


async def test_a_mail_that_is_out_cannot_be_cancelled(mailer: Running, smtp_server: SmtpServer) -> None:
    """Its state stays what it is."""
    await mailer.mail()
    await mailer.outcome()
    await mailer.cancel("t-1")
    await mailer.mail("t-2")
    await mailer.outcome(2)
    assert [outcome["state"] for outcome in mailer.outcomes] == ["sent", "sent"]


async def event(mailer: Running, data: Any, **envelope: Any) -> None:
    message = Message(b"", Envelope(type="order.placed", source="/shop", **envelope))
    await mailer.vhost.publish("events", "order.placed", json.dumps(data).encode(), headers=to_headers(message))


async def test_an_event_sends_the_mails_of_its_templates(mailer: Running, smtp_server: SmtpServer) -> None:
    """The same event twice is one mail; the outcomes say enough for a ledger that has never heard of the task."""
    for _ in range(2):
        await event(mailer, {"order": "A-17", "email": "ada@example.com"}, id="e-1")
    await mailer.outcome(4)
    assert len(smtp_server.mails) == 1
    assert smtp_server.mails[0].message["Subject"] == "Your order A-17"
    assert {outcome["state"] for outcome in mailer.outcomes} == {"queued", "sent"}
    assert len({outcome["task_id"] for outcome in mailer.outcomes}) == 1
    for outcome in mailer.outcomes:
        assert (outcome["event_id"], outcome["to"], outcome["template"], outcome["owner"], outcome["lane"]) == (
            "e-1", "ada@example.com", "order-confirmed", "event", "normal",
        )  # fmt: skip


async def test_an_event_with_a_list_of_recipients_sends_to_the_good_ones(
    start: Start, smtp_server: SmtpServer, tmp_path: Any
) -> None:
    """A bad address is a dead letter that names it, and keeps no mail from the others."""
    (tmp_path / "all.mail").write_text('---\nsubject: x\non: order.placed\nto: "{{ data.people }}"\n---\nHi\n')
    async with start(smtp_server.port, templates=tmp_path) as mailer:
        await event(mailer, {"people": ["ada@example.com", "no address", "bob@example.com"]})
        letter = await mailer.dead_letter()
        await mailer.outcome(4)
    assert "all for 'no address'" in letter.headers["bellhop-error"]
    assert sorted(mail.recipients[0] for mail in smtp_server.mails) == ["ada@example.com", "bob@example.com"]


async def test_a_lost_reply_to_the_final_dot_is_reported_as_uncertain(start: Start) -> None:
    """Two copies are possible, both with one Message-ID, and both the outcomes say so (RFC 1047)."""
    async with ScriptedRelay(replies={".": [DROP]}) as relay, start(relay.port) as mailer:
        await mailer.mail()
        await mailer.outcome(2, timeout=15)
        assert [(one["state"], one["uncertain"]) for one in mailer.outcomes] == [("retrying", True), ("sent", True)]
        assert len(relay.mails) == 2
        ids = {line for mail in relay.mails for line in mail.split(b"\r\n") if line.startswith(b"Message-ID")}
        assert ids == {b"Message-ID: <t-1@bellhop.example>"}


async def test_a_claim_of_a_crashed_replica_is_sent_again_as_uncertain(
    mailer: Running, smtp_server: SmtpServer, database_url: str
) -> None:
    """The mail goes out, and the outcome says that it may not be the first copy."""
    await crashed_replica(database_url, record=None)
    await mailer.mail()
    assert (await mailer.outcome())["uncertain"] is True
    assert len(smtp_server.mails) == 1


async def test_a_crash_between_record_and_report_is_made_good(
    mailer: Running, smtp_server: SmtpServer, database_url: str
) -> None:
    """What was recorded is reported; nothing is sent."""
    outcome = '{"task_id":"t-1","state":"sent","at":"2025-11-21T09:30:00Z","lane":"normal"}'
    await crashed_replica(database_url, record=Result(("t-1", 1), Kept.DONE, 1, outcome=outcome))
    await mailer.mail()
    assert (await mailer.outcome())["state"] == "sent"
    assert not smtp_server.mails


async def crashed_replica(database_url: str, *, record: Result | None) -> None:
    """Leave behind what a replica leaves that never says goodbye and was last seen long ago."""
    database = Database(database_url)
    inbox = Inbox(database, "crashed")
    await inbox.claim(("t-1", 1), 1)
    if record is not None:
        await inbox.record(record)
    await database.close()


async def test_mails_wait_for_a_relay_that_is_away(start: Start, smtp_server: SmtpServer) -> None:
    """Neither an attempt nor a dead letter; the health page says why."""
    async with start(smtp_server.port) as mailer:
        await smtp_server.stop()
        await mailer.mail()

        async def trouble() -> bool:
            return "cannot use the relay" in (await mailer.app.state.ready())["relay"]

        await wait_until(trouble)
        await smtp_server.start(smtp_server.port)
        outcome = await mailer.outcome()
        assert (outcome["state"], outcome["attempt"]) == ("sent", 1)


async def test_a_mail_that_waits_for_the_relay_is_not_claimed_by_a_crash(start: Start, smtp_server: SmtpServer) -> None:
    """A mailer that ends while the relay is away gives its mails back: the next one sends them, and is certain."""
    async with start(smtp_server.port) as mailer:
        await smtp_server.stop()
        await mailer.mail()

        async def trouble() -> bool:
            return "cannot use the relay" in (await mailer.app.state.ready())["relay"]

        await wait_until(trouble)
    await smtp_server.start(smtp_server.port)
    async with start(smtp_server.port) as mailer:
        outcome = await mailer.outcome()
    assert (outcome["state"], outcome["attempt"], outcome["uncertain"]) == ("sent", 1, False)


async def test_stopping_finishes_what_is_on_the_wire(start: Start, smtp_server: SmtpServer) -> None:
    """A mail whose final dot is out is recorded and reported before the process ends."""
    smtp_server.delay = 0.5
    async with start(smtp_server.port) as mailer:
        await mailer.mail()
        await wait_until(lambda: smtp_server.connections)
    assert (await mailer.outcome())["state"] == "sent"
    assert len(smtp_server.mails) == 1
