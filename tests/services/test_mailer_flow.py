"""A mail from its queue to the mailbox, with a real broker, a real SMTP server and both databases."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.tasks import CancelTask
from bellhop.sql.database import Database
from bellhop.tasks.claims import InboxState, Result
from bellhop.tasks.inbox import Inbox
from services.mailer import handlers
from services.mailer.tables import INBOX
from tests.services.mailer_running import Running, running_mailer
from tests.services.mailer_support import DROP, ScriptedRelay
from tests.support import SmtpServer, Vhost, wait_until

logging.getLogger("aio_pika").setLevel(logging.ERROR)


Start = Callable[..., Any]


@pytest.fixture
def start(vhost: Vhost, database_url: str) -> Start:
    return partial(running_mailer, vhost, database_url)


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
    smtp_server.hold.clear()
    async with start(smtp_server.port, smtp_connections=5) as mailer:
        for number in range(40):
            await mailer.mail(f"bulk-{number}", lane="bulk")
        await wait_until(lambda: smtp_server.connections == 3, description="bulk mail has its share of the connections")
        await mailer.mail("urgent", lane="urgent", to="urgent@example.com")
        await wait_until(lambda: smtp_server.connections == 4, description="urgent mail has a connection of its own")
        smtp_server.hold.set()
        await mailer.outcome(41, timeout=30)


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


async def test_a_refused_sender_fails_and_charges_no_mail(
    start: Start, smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the relay refuses us: the outcome says why the mail waits, and the mail goes out as attempt 1."""
    monkeypatch.setattr(handlers, "DEFERRAL_SECONDS", (0.1,))
    smtp_server.mail_replies = ["550 5.1.0 sender denied"] * 12
    async with start(smtp_server.port) as mailer:
        await mailer.mail()
        waiting = await mailer.outcome()
        assert (waiting["state"], waiting["cause"], waiting["attempt"]) == ("retrying", "relay", 1)
        assert "sender denied" in waiting["reply"]
        await wait_until(lambda: smtp_server.mails, timeout=30)
        await wait_until(lambda: last_state(mailer, "sent"))
    assert mailer.outcomes[-1]["attempt"] == 1
    assert not smtp_server.mail_replies


async def test_after_four_days_a_refused_sender_counts(mailer: Running, smtp_server: SmtpServer) -> None:
    """So that a mail that can never go out comes to an end."""
    smtp_server.mail_replies = ["550 5.1.0 sender denied"] * 12
    await mailer.mail(attempt=8, envelope={"time": now() - timedelta(days=5)})
    outcome = await mailer.outcome()
    assert (outcome["state"], outcome["cause"]) == ("failed", "relay")


async def last_state(mailer: Running, state: str) -> bool:
    await mailer.outcome(len(mailer.outcomes))
    return bool(mailer.outcomes) and mailer.outcomes[-1]["state"] == state


async def test_a_greylisted_mail_waits_five_minutes_at_least(mailer: Running, smtp_server: SmtpServer) -> None:
    """It goes to the retry queue of ten minutes."""
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


async def test_a_withdrawn_task_ends_as_it_was_asked_to(mailer: Running, smtp_server: SmtpServer) -> None:
    """The outcome says `suppressed` and why, and the mail is not sent."""
    request = CancelTask(task_id="t-1", round=1, state="suppressed", reason="The address is suppressed: asked")
    await mailer.put("mail.cancel", request.model_dump_json().encode(), "mail.cancelled")
    outcome = await mailer.outcome()
    assert (outcome["state"], outcome["reply"]) == ("suppressed", "The address is suppressed: asked")
    await mailer.mail()
    await mailer.outcome(2)
    assert not smtp_server.mails


async def test_a_cancelled_task_is_not_begun(mailer: Running, smtp_server: SmtpServer) -> None:
    """The cancellation may come before the task."""
    await mailer.cancel("t-1")
    assert (await mailer.outcome())["state"] == "cancelled"
    await mailer.mail()
    outcome = await mailer.outcome(2)
    assert (outcome["state"], outcome["attempt"]) == ("cancelled", 0)
    assert not smtp_server.mails


async def test_a_cancel_of_a_mail_that_is_out_reports_its_outcome_again(
    mailer: Running, smtp_server: SmtpServer
) -> None:
    """The first report may have been lost."""
    await mailer.mail()
    first = await mailer.outcome()
    await mailer.cancel("t-1")
    assert await mailer.outcome(2) == first
    assert len(smtp_server.mails) == 1


async def test_a_cancel_during_an_attempt_ends_the_retries(
    mailer: Running, smtp_server: SmtpServer, database_url: str
) -> None:
    """The attempt fails with the server's words, its outcome is `cancelled`, and the message leaves the ladder."""
    smtp_server.hold.clear()
    smtp_server.data_replies = ["451 4.3.0 not now"]
    await mailer.mail()
    await wait_until(lambda: smtp_server.connections, description="an attempt is under way")
    await mailer.cancel("t-1")
    await wait_until(lambda: _cancel_is_stored(database_url), description="the cancel is stored")
    smtp_server.hold.set()
    outcome = await mailer.outcome()
    assert (outcome["state"], outcome["attempt"], outcome["code"]) == ("cancelled", 1, 451)
    assert "retry_at" not in outcome


async def _cancel_is_stored(database_url: str) -> bool:
    database = Database(database_url)
    try:
        async with database.read() as connection:
            return bool((await connection.execute(sa.select(INBOX.tasks.c.cancel_requested))).scalar())
    finally:
        await database.close()


async def test_stopping_in_the_middle_of_much_work_ends_in_time(start: Start, smtp_server: SmtpServer) -> None:
    """What has not begun goes back to its queue at once, and each mail is out once."""
    async with start(smtp_server.port, smtp_connections=2) as mailer:
        await asyncio.gather(*(mailer.mail(f"t-{number}", lane="bulk") for number in range(300)))
        await wait_until(lambda: smtp_server.mails)
        began = time.monotonic()
    assert time.monotonic() - began < 10
    async with start(smtp_server.port) as mailer:
        await mailer.outcome(300, timeout=30)
    assert len(smtp_server.mails) == 300


async def event(mailer: Running, data: Any, **envelope: Any) -> None:
    message = Message(b"", Envelope(type="order.placed", source="/shop", **envelope))
    await mailer.vhost.publish("work", "mailer.reactions", json.dumps(data).encode(), headers=to_headers(message))


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
    counted = partial(REGISTRY.get_sample_value, "bellhop_mailer_uncertain_total", {"why": "no reply to the final dot"})
    before = counted() or 0.0
    async with ScriptedRelay(replies={".": [DROP]}) as relay, start(relay.port) as mailer:
        await mailer.mail()
        await mailer.outcome(2, timeout=15)
        assert counted() == before + 1
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
    await crashed_replica(database_url, record=Result(("t-1", 1), InboxState.FINISHED, 1, outcome=outcome))
    await mailer.mail()
    assert (await mailer.outcome())["state"] == "sent"
    assert not smtp_server.mails


async def crashed_replica(database_url: str, *, record: Result | None) -> None:
    """Leave behind what a replica leaves that never says goodbye and was last seen long ago."""
    database = Database(database_url)
    inbox = Inbox(database, INBOX, "crashed")
    await inbox.claim(("t-1", 1), 1)
    if record is not None:
        await inbox.record(record)
    await database.close()


async def test_mails_wait_for_a_relay_that_is_away(start: Start, smtp_server: SmtpServer) -> None:
    """Neither an attempt nor a dead letter; the health page says why."""
    async with start(smtp_server.port) as mailer:
        await smtp_server.stop()
        await mailer.mail()

        async def failure() -> bool:
            return "cannot use the relay" in (await mailer.app.state.ready())["relay"]

        await wait_until(failure)
        await smtp_server.start(smtp_server.port)
        outcome = await mailer.outcome()
        assert (outcome["state"], outcome["attempt"]) == ("sent", 1)


async def test_a_mail_that_waits_for_the_relay_is_not_claimed_by_a_crash(start: Start, smtp_server: SmtpServer) -> None:
    """A mailer that ends while the relay is away gives its mails back: the next one sends them, and is certain."""
    async with start(smtp_server.port) as mailer:
        await smtp_server.stop()
        await mailer.mail()

        async def failure() -> bool:
            return "cannot use the relay" in (await mailer.app.state.ready())["relay"]

        await wait_until(failure)
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


@pytest.mark.parametrize(
    ("address", "wire"),
    [("ada@bücher.example", "ada@xn--bcher-kva.example"), ("ada@BÜCHER.Example", "ada@xn--bcher-kva.example")],
)
async def test_an_international_domain_goes_out_as_dns_has_it(
    mailer: Running, smtp_server: SmtpServer, address: str, wire: str
) -> None:
    """Every relay understands A-labels; only a name before the @ beyond ASCII needs SMTPUTF8."""
    await mailer.mail(to=address)
    assert (await mailer.outcome())["state"] == "sent"
    (mail,) = smtp_server.mails
    assert (mail.recipients, mail.message["To"]) == ([wire], wire)


async def test_a_name_of_any_letters_stands_before_the_address(mailer: Running, smtp_server: SmtpServer) -> None:
    """In the header alone: to the relay the recipient is the bare address."""
    await mailer.mail(to="ada@bücher.example", to_name="Ада Лавлейс, 愛達")
    assert (await mailer.outcome())["state"] == "sent"
    (mail,) = smtp_server.mails
    (shown,) = mail.message["To"].addresses
    assert (mail.recipients, shown.addr_spec) == (["ada@xn--bcher-kva.example"], "ada@xn--bcher-kva.example")
    assert shown.display_name == "Ада Лавлейс, 愛達"


async def test_a_domain_that_is_none_fails_with_a_reason(mailer: Running, smtp_server: SmtpServer) -> None:
    """A message of an earlier version may hold one: it is a dead letter that says why, and no relay is asked."""
    task = {"task_id": "t-1", "round": 1, "owner": "key-1", "to": "ada@büch_er.example", "subject": "Hi", "text": "x"}
    await mailer.put("mail.normal", json.dumps(task).encode())
    letter = await mailer.dead_letter()
    assert "domain" in str(letter.headers["bellhop-error"])
    assert not smtp_server.connections


async def test_a_new_book_is_mailed_to_everybody_who_follows_its_genre(
    mailer: Running, smtp_server: SmtpServer
) -> None:
    """One event, a mail to each follower with their own name; the same event again sends none."""
    followers = [{"email": f"reader-{number}@example.com", "name": f"Reader {number}"} for number in range(10)]
    book = {"genre": "crime", "title": "The Bell", "author": "A. Hop", "followers": followers}
    message = Message(b"", Envelope(type="book.published", source="/shop", id="e-1"))
    for _ in range(2):
        await mailer.vhost.publish("work", "mailer.reactions", json.dumps(book).encode(), headers=to_headers(message))
    await mailer.outcome(40, timeout=20)
    assert len(smtp_server.mails) == 10
    (mail,) = smtp_server.to("reader-7@example.com")
    assert mail.message["Subject"] == "New in crime: The Bell"
    text = mail.message.get_body(("plain",))
    assert text is not None
    assert text.get_content().startswith("Hello Reader 7,")
