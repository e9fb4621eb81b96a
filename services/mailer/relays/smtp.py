"""A relay that speaks SMTP: a pool of connections, each used for many mails, and TLS.

With `starttls` and `tls`, no mail and no password is ever sent in clear: a relay that does not offer STARTTLS, or whose
certificate does not verify, is unavailable.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass

from aiosmtplib import SMTP, SMTPException, SMTPHeloError
from opentelemetry.util.types import AttributeValue

from bellhop.observe import traces
from services.mailer.message import dot_stuffed
from services.mailer.relays.dialogue import Broken, Dialogue, adopt
from services.mailer.relays.replies import Cause, Kind, Verdict, classify, lost
from services.mailer.relays.settings import SmtpRelay, Tls
from services.mailer.relays.transport import Outgoing, RelayUnavailable

_UNSAFE = re.compile(r"[\x00-\x20<>\x7f]")


@dataclass(slots=True)
class _Session:
    dialogue: Dialogue
    mails: int = 0
    idle_since: float = 0.0


class Smtp:
    """One SMTP server, with its connections."""

    def __init__(self, settings: SmtpRelay, hello: str) -> None:
        """`hello`: the name that we give in EHLO."""
        self._settings = settings
        self._hello = hello
        self._idle: list[_Session] = []
        self._tls: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def address(self) -> str:
        """Return host and port."""
        return f"{self._settings.host}:{self._settings.port}"

    async def send(self, mail: Outgoing) -> Verdict:
        """Send one mail and return the result.

        Raises:
            RelayUnavailable: nothing was sent, for a reason that is not in the mail.
        """
        if traces.tracer is None:
            return await self._send(mail)
        about: dict[str, AttributeValue] = {
            "network.protocol.name": "smtp",
            "server.address": self._settings.host,
            "server.port": self._settings.port,
        }
        with traces.client_span(traces.tracer, "SMTP send", about) as span:
            verdict = await self._send(mail)
            if verdict.code is not None:
                span.set_attribute("smtp.response.status_code", verdict.code)
            if verdict.kind is not Kind.SENT:
                traces.failed(span, verdict.kind.value)
            return verdict

    async def _send(self, mail: Outgoing) -> Verdict:
        if (session := self._reuse()) is not None:
            verdict = await self._attempt(session, mail)
            # The relay may have closed an idle connection, or the previous mail may have left it in a wrong state. In
            # both cases another connection may work.
            if not verdict.try_next_relay:
                return verdict
        return await self._attempt(await self._connect(), mail)

    async def _attempt(self, session: _Session, mail: Outgoing) -> Verdict:
        verdict: Verdict | None = None
        try:
            mail.check()
            verdict = await self._transact(session, mail)
        except Broken as broken:
            when = "after the final dot" if broken.after_dot else "before the mail was sent"
            return lost(f"{broken} ({self.address}, {when})", after_dot=broken.after_dot)
        else:
            return verdict
        finally:
            if verdict is not None and verdict.try_next_relay:
                session.dialogue.close()
            self._release(session)

    async def probe(self) -> None:
        """Connect and log in; the connection is used for the next mail.

        Raises:
            RelayUnavailable: it is not possible.
        """
        self._release(await self._connect())

    def sweep(self) -> None:
        """Close idle connections."""
        oldest = self._loop.time() - self._settings.idle_seconds
        stale = [session for session in self._idle if session.idle_since < oldest or not session.dialogue.usable]
        self._idle = [session for session in self._idle if session not in stale]
        for session in stale:
            session.dialogue.close()

    async def close(self) -> None:
        """Close all connections that carry no mail."""
        for session in self._idle:
            session.dialogue.close()
        self._idle.clear()

    def _reuse(self) -> _Session | None:
        oldest = self._loop.time() - self._settings.idle_seconds
        while self._idle:
            session = self._idle.pop()  # the one used last, so that surplus connections become idle and are closed
            if session.dialogue.usable and session.idle_since >= oldest:
                return session
            session.dialogue.close()
        return None

    def _release(self, session: _Session) -> None:
        if not session.dialogue.usable or session.mails >= self._settings.mails_per_connection:
            session.dialogue.close()
            return
        session.idle_since = self._loop.time()
        self._idle.append(session)

    async def _connect(self) -> _Session:
        settings = self._settings
        try:
            context = await self._tls_context()
        except OSError as error:
            raise RelayUnavailable(f"cannot use the relay {self.address}: its CA file: {error}") from error
        smtp = SMTP(
            hostname=settings.host,
            port=settings.port,
            use_tls=settings.tls is Tls.TLS,
            start_tls=settings.tls is Tls.STARTTLS,  # True: required; aiosmtplib's default would be "if offered"
            tls_context=context,
            username=settings.username,
            password=settings.password.get_secret_value() if settings.password else None,
            local_hostname=self._hello,
            timeout=settings.timeout,
        )
        try:
            await smtp.connect()
            if smtp.is_ehlo_or_helo_needed:
                await _hello(smtp)
        except (SMTPException, OSError, ValueError) as error:
            smtp.close()
            raise RelayUnavailable(f"cannot use the relay {self.address}: {_sentence(error)}") from error
        assert smtp.transport is not None
        return _Session(adopt(smtp.transport, smtp.esmtp_extensions))

    async def _tls_context(self) -> ssl.SSLContext | None:
        if self._settings.tls is Tls.NONE:
            return None
        if self._tls is None:
            # Reads the CA files: tens of milliseconds, once.
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._settings.ca_file)
        return self._tls

    async def _transact(self, session: _Session, mail: Outgoing) -> Verdict:
        dialogue, settings = session.dialogue, self._settings
        parameters = b""
        if not (mail.sender.isascii() and mail.recipient.isascii()):
            if not dialogue.offers("smtputf8"):
                sentence = f"the relay {self.address} does not offer SMTPUTF8, which this address needs"
                return Verdict(Kind.PERMANENT, sentence, enhanced="5.6.7")
            parameters += b" BODY=8BITMIME SMTPUTF8" if dialogue.offers("8bitmime") else b" SMTPUTF8"
        if dialogue.offers("size"):
            if dialogue.max_bytes is not None and len(mail.message) > dialogue.max_bytes:
                sentence = (
                    f"the mail has {len(mail.message)} bytes; the relay {self.address} takes {dialogue.max_bytes}"
                )
                return Verdict(Kind.PERMANENT, sentence, enhanced="5.3.4", cause=Cause.CONTENT)
            parameters += b" SIZE=%d" % len(mail.message)
        answer = await dialogue.transact(
            _path(mail.sender) + parameters,
            _path(mail.recipient),
            dot_stuffed(mail.message),
            timeout=settings.timeout,
            data_timeout=settings.data_timeout,
        )
        session.mails += 1
        return classify(answer.step, *answer.reply)


async def _hello(smtp: SMTP) -> None:
    """Send EHLO, or HELO to a server that refuses it (RFC 5321, 3.2)."""
    try:
        await smtp.ehlo()
    except SMTPHeloError:
        await smtp.helo()


def _path(address: str) -> bytes:
    """Return `<address>`. Contracts refuse unsafe addresses; this is a second check."""
    if _UNSAFE.search(address):
        raise ValueError("an address on the wire must not contain blanks, control characters or angle brackets")
    return b"<" + address.encode() + b">"


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError) and str(cause) not in text:
        text += f" ({cause})"
    return text
