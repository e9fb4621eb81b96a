"""The relay: connections, TLS, and what is known when something breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bellhop.contracts.tasks import Lane
from services.mailer.message import Mail
from services.mailer.relays import pool as relays
from services.mailer.relays.pool import Relays
from services.mailer.relays.replies import Kind, Verdict
from services.mailer.relays.transport import Outgoing, RelayUnavailable
from tests.services.mailer_support import DROP, SILENCE, ScriptedRelay, certificate, mailer_settings
from tests.support import SmtpServer, wait_until

MESSAGE = b"Subject: x\r\n\r\n.dots\r\nHello\r\n"


@asynccontextmanager
async def relay_to(server: ScriptedRelay | SmtpServer, **changes: Any) -> AsyncIterator[Relays]:
    settings = mailer_settings(server.port, **changes)
    found = Relays(settings.all_relays, settings.domain)
    yield found
    await found.close()


async def send(relay: Relays, to: str = "ada@example.com", message: bytes = MESSAGE) -> Verdict:
    """Send as the handler does: until a relay has said something."""
    mail = Outgoing("hello@bellhop.example", to, message, Mail(to, "x", "<1@bellhop.example>"), lambda: None)
    while True:
        (first,) = await relay.usable()
        with suppress(RelayUnavailable):
            return await relay.send(first, mail, Lane.URGENT)


@pytest.fixture(params=["pipelining", "one by one"])
async def scripted(request: pytest.FixtureRequest) -> AsyncIterator[ScriptedRelay]:
    extensions = ("PIPELINING", "SIZE") if request.param == "pipelining" else ("SIZE",)
    async with ScriptedRelay(extensions) as server:
        yield server


async def test_a_mail_arrives_byte_for_byte(smtp_server: SmtpServer) -> None:
    """Dots at line beginnings are doubled on the wire and single in the mailbox."""
    async with relay_to(smtp_server) as relay:
        verdict = await send(relay)
    assert verdict.kind is Kind.SENT
    assert [mail.content for mail in smtp_server.mails] == [MESSAGE]


async def test_one_connection_carries_many_mails(scripted: ScriptedRelay) -> None:
    """A connection is kept for the next mail, without RSET after a success."""
    async with relay_to(scripted) as relay:
        for _ in range(5):
            await send(relay)
    assert scripted.connections == 1
    assert "RSET" not in scripted.commands


async def test_pipelining_saves_round_trips() -> None:
    """MAIL, RCPT and DATA go out before the first of them is answered (RFC 2920)."""
    async with ScriptedRelay() as server, relay_to(server) as relay:
        server.replies["MAIL"] = ["250 first", "250 first"]
        await send(relay)
        assert [command.split(":")[0] for command in server.commands[1:]] == ["MAIL FROM", "RCPT TO", "DATA"]


async def test_a_connection_is_renewed_after_its_share_of_mails(scripted: ScriptedRelay) -> None:
    """Some relays limit the mails of one connection, and long ones pin a load balancer."""
    async with relay_to(scripted, smtp_mails_per_connection=2) as relay:
        for _ in range(5):
            await send(relay)
    assert scripted.connections == 3


async def test_an_idle_connection_is_closed(scripted: ScriptedRelay) -> None:
    """With a QUIT, not by leaving."""
    async with relay_to(scripted, smtp_idle_seconds=0.01) as relay:
        await send(relay)
        await asyncio.sleep(0.02)
        await relay.sweep()
        await wait_until(lambda: scripted.commands[-1] == "QUIT")


@pytest.mark.parametrize("verb", ["RCPT", "DATA", "."])
async def test_a_refusal_leaves_the_connection_fit_for_the_next_mail(scripted: ScriptedRelay, verb: str) -> None:
    """Whatever was refused, the next mail goes over the same connection and is the only one to arrive."""
    scripted.replies[verb] = ["554 5.6.0 no"]
    async with relay_to(scripted) as relay:
        refused = await send(relay)
        scripted.mails.clear()
        sent = await send(relay)
    assert (refused.kind, refused.enhanced, sent.kind) == (Kind.PERMANENT, "5.6.0", Kind.SENT)
    assert scripted.connections == 1
    assert len(scripted.mails) == 1


async def test_421_ends_the_connection_not_the_mail(scripted: ScriptedRelay) -> None:
    """The server said good-bye: the mail waits, and the next one gets a fresh connection."""
    scripted.replies["MAIL"] = ["421 4.3.2 shutting down"]
    async with relay_to(scripted) as relay:
        verdict = await send(relay)
        assert (verdict.kind, verdict.code) == (Kind.TRANSIENT, 421)
        assert (await send(relay)).kind is Kind.SENT
    assert scripted.connections == 2


@pytest.mark.parametrize(("verb", "uncertain"), [("MAIL", False), ("RCPT", False), ("DATA", False), (".", True)])
async def test_only_a_loss_after_the_final_dot_is_uncertain(
    scripted: ScriptedRelay, verb: str, uncertain: bool
) -> None:
    """Before it the server cannot have the mail; after it, it may (RFC 1047)."""
    scripted.replies[verb] = [DROP]
    async with relay_to(scripted) as relay:
        verdict = await send(relay)
    assert (verdict.kind, verdict.uncertain) == (Kind.TRANSIENT, uncertain)


@pytest.mark.parametrize(("verb", "uncertain"), [("MAIL", False), ("DATA", False), (".", True)])
async def test_silence_ends_in_time(scripted: ScriptedRelay, verb: str, uncertain: bool) -> None:
    """Each reply has its deadline, the one after the final dot its own."""
    scripted.replies[verb] = [SILENCE]
    async with relay_to(scripted, smtp_timeout=0.2, smtp_data_timeout=0.3) as relay:
        verdict = await send(relay)
    assert (verdict.kind, verdict.uncertain) == (Kind.TRANSIENT, uncertain)
    assert ("0.3 s" if uncertain else "0.2 s") in verdict.sentence


async def test_a_relay_that_closed_an_idle_connection_costs_no_attempt(scripted: ScriptedRelay) -> None:
    """The mail goes over a fresh connection at once."""
    async with relay_to(scripted) as relay:
        await send(relay)
        scripted.replies["MAIL"] = [DROP]
        assert (await send(relay)).kind is Kind.SENT
    assert scripted.connections == 2


async def test_words_that_nobody_asked_for_end_the_connection(scripted: ScriptedRelay) -> None:
    """From then on replies could be taken for those of other commands."""
    scripted.replies["MAIL"] = ["250 OK\r\n250 OK\r\n250 OK\r\n250 OK\r\n250 OK"]
    async with relay_to(scripted) as relay:
        verdict = await send(relay)
        assert (verdict.kind, scripted.mails) == (Kind.TRANSIENT, [])
        assert (await send(relay)).kind is Kind.SENT
    assert scripted.connections == 2


async def test_an_address_beyond_ascii_needs_smtputf8(smtp_server: SmtpServer, scripted: ScriptedRelay) -> None:
    """It goes out where the relay offers SMTPUTF8 (RFC 6531), and is refused with a reason where not."""
    async with relay_to(smtp_server) as relay:
        assert (await send(relay, "grüße@example.com")).kind is Kind.SENT
    async with relay_to(scripted) as relay:
        verdict = await send(relay, "grüße@example.com")
    assert (verdict.kind, verdict.enhanced) == (Kind.PERMANENT, "5.6.7")
    assert "SMTPUTF8" in verdict.sentence


async def test_an_unsafe_address_never_reaches_the_wire(scripted: ScriptedRelay) -> None:
    """What a contract should have refused is refused again at the last gate."""
    async with relay_to(scripted) as relay:
        with pytest.raises(ValueError, match="angle brackets"):
            await send(relay, "a@example.com>\r\nRCPT TO:<eve@example.com")
    assert not scripted.mails


# A relay that is away


async def test_mails_wait_for_a_relay_that_is_away(scripted: ScriptedRelay) -> None:
    """Nothing is counted against them, and one connection at a time tries."""
    await scripted.stop()
    async with relay_to(scripted) as relay:
        sending = [asyncio.create_task(send(relay)) for _ in range(5)]
        await wait_until(lambda: relay.failure)
        assert f"cannot use the relay 127.0.0.1:{scripted.port}" in (relay.failure or "")
        await scripted.start()
        verdicts = await asyncio.gather(*sending)
        assert {verdict.kind for verdict in verdicts} == {Kind.SENT}
        assert relay.failure is None


async def test_who_is_told_to_end_waits_no_longer(scripted: ScriptedRelay) -> None:
    """The mail goes back to its queue."""
    await scripted.stop()
    async with relay_to(scripted) as relay:
        sending = asyncio.create_task(send(relay))
        await wait_until(lambda: relay.failure)
        relay.stop_waiting()
        with pytest.raises(RelayUnavailable, match="cannot use the relay"):
            await sending


async def test_waiting_has_an_end(scripted: ScriptedRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the broker takes its consumer for stuck."""
    monkeypatch.setattr(relays, "MAX_WAIT_SECONDS", 0.1)
    await scripted.stop()
    async with relay_to(scripted) as relay:
        with pytest.raises(RelayUnavailable):
            await send(relay)


async def test_connections_stay_within_the_limit(smtp_server: SmtpServer) -> None:
    """However many mails wait."""
    smtp_server.delay = 0.05
    async with relay_to(smtp_server, smtp_connections=3) as relay:
        verdicts = await asyncio.gather(*(send(relay) for _ in range(12)))
    assert {verdict.kind for verdict in verdicts} == {Kind.SENT}
    assert smtp_server.connections == 3


# TLS


async def refused(relay: Relays) -> str:
    """Return why no mail can go out."""
    sending = asyncio.create_task(send(relay))
    await wait_until(lambda: relay.failure)
    relay.stop_waiting()
    with pytest.raises(RelayUnavailable) as caught:
        await sending
    return str(caught.value)


async def test_starttls_protects_mail_and_password(tmp_path: Path) -> None:
    """With a certificate that verifies, AUTH and everything after it travels encrypted."""
    pem, context = certificate(tmp_path)
    async with ScriptedRelay(("STARTTLS", "AUTH PLAIN"), tls=context) as server:
        server.replies["AUTH"] = ["235 welcome"]
        login = {"smtp_username": "bellhop", "smtp_password": "secret"}
        changes = {"smtp_host": "localhost", "smtp_tls": "starttls", "smtp_ca_file": pem, **login}
        async with relay_to(server, **changes) as relay:
            assert (await send(relay)).kind is Kind.SENT
        verbs = [command.split(" ")[0] for command in server.commands]
        assert verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


async def test_implicit_tls_protects_everything(tmp_path: Path) -> None:
    """From the first byte on: the server hears no STARTTLS, and the mail arrives."""
    pem, context = certificate(tmp_path)
    async with ScriptedRelay(("AUTH PLAIN",), tls=context, implicit=True) as server:
        server.replies["AUTH"] = ["235 welcome"]
        login = {"smtp_username": "bellhop", "smtp_password": "secret"}
        async with relay_to(server, smtp_host="localhost", smtp_tls="tls", smtp_ca_file=pem, **login) as relay:
            assert (await send(relay)).kind is Kind.SENT
        assert [command.split(" ")[0] for command in server.commands[:2]] == ["EHLO", "AUTH"]
        assert len(server.mails) == 1


@pytest.mark.parametrize("reply", ["250 test.invalid", "502 5.5.1 no"])
async def test_a_stripped_starttls_never_falls_back_to_clear(reply: str) -> None:
    """Neither mail nor password goes to a server, or a man in the middle, that does not offer TLS."""
    async with ScriptedRelay(("AUTH PLAIN",)) as server:
        server.replies["EHLO"] = [reply] * 10
        login = {"smtp_username": "bellhop", "smtp_password": "secret"}
        async with relay_to(server, smtp_tls="starttls", **login) as relay:
            assert "STARTTLS" in await refused(relay)
        assert not server.mails
        assert {command.split(" ")[0] for command in server.commands} <= {"EHLO", "HELO", "QUIT"}


@pytest.mark.parametrize("mode", ["starttls", "tls"])
async def test_a_wrong_certificate_gets_no_mail(tmp_path: Path, mode: str) -> None:
    """Not signed by an authority that we trust, or made out to another name."""
    _, context = certificate(tmp_path)
    other, _ = certificate(tmp_path, "other.invalid")
    async with ScriptedRelay(("STARTTLS",), tls=context) as server:
        changes = {"smtp_host": "localhost", "smtp_tls": mode, "smtp_ca_file": other, "smtp_timeout": 1.0}
        async with relay_to(server, **changes) as relay:
            await refused(relay)
        assert not server.mails
        assert not any(command.startswith("MAIL") for command in server.commands)


async def test_what_is_said_before_tls_is_forgotten(tmp_path: Path) -> None:
    """Replies injected behind the answer to STARTTLS are not taken for those of the real server."""
    pem, context = certificate(tmp_path)
    async with ScriptedRelay(("STARTTLS",), tls=context) as server:
        server.replies["STARTTLS"] = ["220 go on\r\n250 injected"]
        changes = {"smtp_host": "localhost", "smtp_tls": "starttls", "smtp_ca_file": pem, "smtp_timeout": 1.0}
        async with relay_to(server, **changes) as relay:
            assert (await send(relay)).kind is Kind.SENT
        assert "EHLO bellhop.example" in server.commands[2:]


def test_a_password_in_clear_is_refused_by_the_settings() -> None:
    """Only a relay on this machine may get one without TLS."""
    login = {"smtp_username": "bellhop", "smtp_password": "secret"}
    mailer_settings(25, smtp_host="127.0.0.1", **login)
    with pytest.raises(ValidationError, match="in clear"):
        mailer_settings(25, smtp_host="smtp.example.com", **login)
