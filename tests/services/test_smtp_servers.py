"""SMTP servers as they are: each test is one way in which real servers misbehave, and what it may cost a mail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bellhop.contracts.tasks import Lane
from services.mailer.message import Mail
from services.mailer.relays.pool import Relays
from services.mailer.relays.replies import Cause, Kind, Verdict
from services.mailer.relays.transport import Outgoing
from tests.services.mailer_support import DROP, Answer, ScriptedRelay, mailer_settings

MESSAGE = b"Subject: x\r\n\r\nHello\r\n"
LARGE = b"Subject: x\r\n\r\n" + b"x" * 70 * 1000 * 1000


@asynccontextmanager
async def relay_to(server: ScriptedRelay, **changes: Any) -> AsyncIterator[Callable[..., Any]]:
    settings = mailer_settings(server.port, **changes)
    found = Relays(settings.all_relays, settings.domain)

    async def send(message: bytes = MESSAGE, to: str = "ada@example.com") -> Verdict:
        mail = Outgoing("hello@bellhop.example", to, message, Mail(to, "x", "<1@bellhop.example>"), lambda: None)
        (first,) = await found.usable()
        return await found.send(first, mail, Lane.URGENT)

    yield send
    await found.close()


def writes(*packets: bytes) -> Answer:
    """Answer with these bytes, one packet each, and leave when the client does."""

    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    return write


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with a reply whose last line never comes."""
    while True:
        writer.write(b"250-\r\n" * 100)
        await writer.drain()


async def reads_no_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ask for the message and close without having read it."""
    writer.write(b"354 go on\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    "reply",
    ["502 5.5.1 command not implemented", "500 unrecognized", "451 try later", "421 4.3.2 closing"],
)
async def test_a_refused_reset_costs_no_mail(reply: str) -> None:
    """After an unknown recipient the next mails go out, by another connection."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        server.replies["RCPT"] = ["550 5.1.1 no such user"]
        server.replies["RSET"] = [reply] * 3
        assert (await send()).cause is Cause.BAD_ADDRESS
        assert [(await send()).kind for _ in range(3)] == [Kind.SENT] * 3
        assert server.connections == 2


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reply", ["503 5.5.1 nested MAIL command", "500 unrecognized", "421 4.4.2 timeout", DROP])
async def test_a_connection_that_is_out_of_step_costs_no_attempt(verb: str, reply: str) -> None:
    """What an old connection says about itself is asked again on a fresh one."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        await send()
        server.replies[verb] = [reply]
        assert (await send()).kind is Kind.SENT
        assert server.connections == 2


async def test_a_421_within_a_pipeline_does_not_shift_the_replies() -> None:
    """The replies behind it belong to nothing, and the mail goes over another connection."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        await send()
        server.replies["MAIL"] = [writes(b"421 4.4.2 idle too long\r\n250 2.1.0 OK\r\n354 go on\r\n")]
        assert (await send()).kind is Kind.SENT
        assert len(server.mails) == 2


@pytest.mark.parametrize(
    "packets",
    [
        (b"250 2.0.0 OK\r\n",),
        (b"2", b"50", b" 2.0.0", b" OK\r", b"\n"),
        (b"250-2.0.0 first\r\n250-", b"2.0.0 second\r\n250 2.0.0 OK\r\n"),
        (b"250 2.0.0 queued\ras 17\r\n",),
        (b"250\r\n",),
        (b"250 2.0.0 OK\n",),
        (b"250 \xff\xfe OK\r\n",),
    ],
    ids=["whole", "split", "many lines", "bare CR", "no text", "bare LF", "no UTF-8"],
)
async def test_a_reply_is_understood_however_it_comes(packets: tuple[bytes, ...]) -> None:
    """After the final dot every reply that is taken for garbage would be a duplicate."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        server.replies["."] = [writes(*packets)]
        assert (await send()).kind is Kind.SENT


@pytest.mark.parametrize(("verb", "uncertain"), [("MAIL", False), (".", True)])
@pytest.mark.parametrize("answer", [writes(b"OK then\r\n"), writes(b"HTTP/1.1 400 Bad Request\r\n\r\n"), endless])
async def test_what_is_no_reply_ends_the_connection(verb: str, uncertain: bool, answer: Answer) -> None:
    """Garbage and a reply without end are over soon, and count as what they are: no answer."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        server.replies[verb] = [answer]
        verdict = await send()
        assert (verdict.kind, verdict.cause, verdict.uncertain) == (Kind.TRANSIENT, Cause.RELAY, uncertain)


async def test_a_message_that_was_not_read_is_certainly_not_out() -> None:
    """The server said 354 and closed: the final dot never left this process, so another relay may take the mail."""
    async with ScriptedRelay(extensions=("PIPELINING",)) as server, relay_to(server) as send:
        server.replies["DATA"] = [reads_no_more]
        verdict = await send(LARGE)
        assert (verdict.uncertain, verdict.try_next_relay) == (False, True)


async def test_a_server_that_stops_reading_gets_no_mail_later() -> None:
    """The upload is given up in time, and nothing of it is written after that."""
    resume, rest = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def pauses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"354 go on\r\n")
        await writer.drain()
        await resume.wait()
        try:
            rest.set_result(await reader.read(100_000_000))
        except ConnectionResetError:
            rest.set_result(b"")

    async with ScriptedRelay(extensions=("PIPELINING",)) as server, relay_to(server, smtp_timeout=0.3) as send:
        server.replies["DATA"] = [pauses]
        verdict = await send(LARGE)
        assert "read nothing" in verdict.sentence
        assert not verdict.uncertain
        resume.set()
        assert b"\r\n.\r\n" not in await rest


async def test_a_refusal_while_the_message_is_read_is_the_answer() -> None:
    """A server need not read all of a mail that it will not take."""

    async def refuses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"354 go on\r\n")
        await reader.read(1000)
        writer.write(b"552 5.3.4 message too big\r\n")
        await reader.read()

    async with ScriptedRelay(extensions=("PIPELINING",)) as server, relay_to(server) as send:
        server.replies["DATA"] = [refuses]
        assert (await send(LARGE)).cause is Cause.CONTENT
        assert (await send()).kind is Kind.SENT


async def test_a_250_that_comes_too_late_is_uncertain() -> None:
    """Nothing tells whether the server has the mail (RFC 1047)."""

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client has left
        writer.write(b"250 2.0.0 OK\r\n")

    async with ScriptedRelay() as server, relay_to(server, smtp_data_timeout=0.2) as send:
        server.replies["."] = [late]
        verdict = await send()
        assert (verdict.kind, verdict.uncertain, verdict.charged) == (Kind.TRANSIENT, True, True)


async def test_a_server_without_ehlo_gets_helo() -> None:
    """RFC 5321, 3.2: a client that is refused EHLO uses HELO."""
    async with ScriptedRelay() as server, relay_to(server) as send:
        server.replies["EHLO"] = ["502 5.5.1 EHLO not implemented"]
        assert (await send()).kind is Kind.SENT
        assert [command.split()[0] for command in server.commands[:2]] == ["EHLO", "HELO"]


async def test_a_mail_above_the_announced_size_is_not_sent() -> None:
    """The server said in EHLO what it takes (RFC 1870)."""
    async with ScriptedRelay(extensions=("SIZE 20",)) as server, relay_to(server) as send:
        verdict = await send()
        assert (verdict.kind, verdict.cause, verdict.enhanced) == (Kind.PERMANENT, Cause.CONTENT, "5.3.4")
        assert not any(command.startswith("MAIL") for command in server.commands)


async def test_a_relay_that_knows_nobody_is_left_alone() -> None:
    """Twenty unknown recipients in a row, in several domains: it is the relay that is wrong."""
    async with ScriptedRelay() as server:
        settings = mailer_settings(server.port)
        relays = Relays(settings.all_relays, settings.domain)
        (relay,) = await relays.usable()
        server.replies["RCPT"] = ["550 5.1.1 no such user"] * 20
        for number in range(20):
            to = f"a{number}@d{number % 6}.example"
            mail = Outgoing("hello@bellhop.example", to, MESSAGE, Mail(to, "x", "<1@x>"), lambda: None)
            assert relay.breaker.closed
            await relays.send(relay, mail, Lane.URGENT)
        assert "knows no recipient" in (relays.failure or "")
        await relays.close()
