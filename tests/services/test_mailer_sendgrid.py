"""SendGrid's HTTP API as a relay, beside SMTP."""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.mailer.message import Attachment, Mail
from services.mailer.relays.replies import Cause, Kind, Verdict
from services.mailer.relays.sendgrid import SendGrid
from services.mailer.relays.settings import SendGridRelay
from services.mailer.relays.transport import Outgoing, RelayUnavailable
from tests.services.mailer_running import running_mailer
from tests.services.mailer_support import ScriptedRelay, relay
from tests.services.sendgrid_support import SendGridServer
from tests.support import Vhost


@pytest.fixture
async def server() -> AsyncIterator[SendGridServer]:
    async with SendGridServer() as running:
        yield running


async def send(server: SendGridServer, **changes: Any) -> Verdict:
    values: dict[str, Any] = {"to": "ada@example.com", "subject": "Hi", "message_id": "<1@bellhop.example>"}
    mail = Mail(**values | {"text": "Hello"} | changes)
    settings = SendGridRelay.model_validate(
        {"kind": "sendgrid", "name": "spare", "api_key": "SG.secret", "url": server.url, "timeout": 2}
    )
    transport = SendGrid(settings)
    try:
        return await transport.send(Outgoing("hello@bellhop.example", mail.to, b"", mail, lambda: None))
    finally:
        await transport.close()


async def test_a_mail_is_taken_with_all_its_parts(server: SendGridServer) -> None:
    """202 is `sent`; the request holds what the SMTP message would, under the same Message-ID."""
    verdict = await send(
        server, html="<p>Hello</p>", reply_to="office@bellhop.example", headers={"X-Tag": "a"}, from_name="Bellhop",
        to_name="Ada Lovelace",
        attachments=(Attachment("a.txt", "text/plain", b"hello"),),
    )  # fmt: skip
    assert (verdict.kind, verdict.code, verdict.sentence) == (Kind.SENT, 202, "Accepted, X-Message-Id abc")
    assert server.mails == [
        {
            "personalizations": [{"to": [{"email": "ada@example.com", "name": "Ada Lovelace"}]}],
            "from": {"email": "hello@bellhop.example", "name": "Bellhop"},
            "reply_to": {"email": "office@bellhop.example"},
            "subject": "Hi",
            "content": [{"type": "text/plain", "value": "Hello"}, {"type": "text/html", "value": "<p>Hello</p>"}],
            "headers": {"Message-ID": "<1@bellhop.example>", "X-Tag": "a"},
            "attachments": [
                {"filename": "a.txt", "type": "text/plain", "content": "aGVsbG8=", "disposition": "attachment"}
            ],
        }
    ]
    assert server.requests[0][1]["authorization"] == "Bearer SG.secret"


BAD_TO = {"message": "Does not contain a valid address.", "field": "personalizations.0.to.0.email"}
BAD_FROM = {"message": "The from address does not match a verified Sender Identity.", "field": "from"}
OTHER = {"message": "The content value must be a string.", "field": "content.0.value"}


@pytest.mark.parametrize(
    ("status", "error", "kind", "cause", "uncertain"),
    [
        (400, BAD_TO, Kind.PERMANENT, Cause.BAD_ADDRESS, False),
        (400, BAD_FROM, Kind.TRANSIENT, Cause.RELAY, False),
        (400, OTHER, Kind.PERMANENT, Cause.CONTENT, False),
        (413, OTHER, Kind.PERMANENT, Cause.CONTENT, False),
        (401, OTHER, Kind.TRANSIENT, Cause.RELAY, False),
        (403, BAD_FROM, Kind.TRANSIENT, Cause.RELAY, False),
        (429, OTHER, Kind.TRANSIENT, Cause.THROTTLED, False),
        (500, OTHER, Kind.TRANSIENT, Cause.RELAY, True),
        (503, OTHER, Kind.TRANSIENT, Cause.RELAY, False),
        (302, OTHER, Kind.TRANSIENT, Cause.RELAY, False),
        (200, OTHER, Kind.TRANSIENT, Cause.OTHER, False),
    ],
)  # fmt: skip
async def test_answers_mean_what_smtp_replies_mean(
    server: SendGridServer, status: int, error: dict[str, Any], kind: Kind, cause: Cause, uncertain: bool
) -> None:
    """Whose fault it is decides whether the mail fails, waits, or goes elsewhere."""
    server.refuse(status, error)
    verdict = await send(server)
    assert (verdict.kind, verdict.cause, verdict.uncertain) == (kind, cause, uncertain)
    assert error["message"] in verdict.sentence


async def test_it_says_when_to_come_back(server: SendGridServer) -> None:
    """Retry-After, or the time at which SendGrid's own window is over."""
    server.refuse(429, OTHER, Retry_After="17")
    server.refuse(429, OTHER, X_RateLimit_Reset=str(int(time.time()) + 40))
    assert (await send(server)).after == 17
    assert (await send(server)).after == pytest.approx(40, abs=2)


async def test_silence_after_the_request_is_uncertain(server: SendGridServer) -> None:
    """It may have taken the mail."""
    server.answers.append((0, {}, b""))
    verdict = await send(server)
    assert (verdict.kind, verdict.uncertain, verdict.try_next_relay) == (Kind.TRANSIENT, True, False)


async def test_without_a_connection_nothing_was_sent() -> None:
    """Such a relay is away, and another one may be asked."""
    async with SendGridServer() as gone:
        pass
    with pytest.raises(RelayUnavailable, match="cannot use the relay"):
        await send(gone)


async def test_it_takes_over_from_smtp(vhost: Vhost, server: SendGridServer, tmp_path: Path) -> None:
    """The first relay wants a password, so the mail goes out by the second, as the same attempt."""
    spare = {"kind": "sendgrid", "name": "spare", "priority": 2, "api_key": "SG.secret", "url": server.url}
    async with ScriptedRelay() as first:
        first.replies["MAIL"] = ["530 5.7.0 authenticate first"]
        database = f"sqlite+aiosqlite:///{tmp_path}/mailer.db"
        async with running_mailer(vhost, database, 1, relays=[relay(first.port, "first"), spare]) as mailer:
            await mailer.mail()
            outcome = await mailer.outcome()
    assert (outcome["state"], outcome["attempt"], outcome["code"]) == ("sent", 1, 202)
    assert outcome["relay"] == "127.0.0.1 (SendGrid)"
    assert len(server.mails) == 1
