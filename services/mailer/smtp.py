"""The relay: connections that carry many mails each, and the promise about TLS.

`starttls` and `tls` never send a mail or a password in clear: a relay that does not offer STARTTLS, or whose
certificate does not verify, is a relay that is away. Trouble with the relay itself is no fault of any mail: it costs
no attempt. The mails wait while one connection at a time tries again.
"""

import asyncio
import random
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiosmtplib import SMTP, SMTPException

from bellhop.contracts.mail import Lane
from bellhop.observe.logs import get_logger
from services.mailer.dialogue import Broken, Dialogue, Step, adopt
from services.mailer.lanes import Lanes
from services.mailer.message import dot_stuffed
from services.mailer.replies import Kind, Verdict, classify, lost
from services.mailer.settings import MailerSettings, Tls

LONGEST_BACK_OFF = 30.0
PATIENCE = 600.0
"""Seconds that a delivery waits for its turn, and then for the relay, before it goes back to its queue. Together they
are well under RabbitMQ's consumer timeout of 30 minutes; and going back often would count against the message on
RabbitMQ before 4.0, where the delivery limit of a quorum queue includes it."""

_UNSAFE = re.compile(r"[\x00-\x20<>\x7f]")

log = get_logger(__name__)


class RelayAway(Exception):
    """No mail can go out at the moment, whatever mail it is."""


@dataclass(slots=True)
class _Session:
    dialogue: Dialogue
    mails: int = 0
    idle_since: float = 0.0


class Relay:
    """The one SMTP server that takes our mail."""

    def __init__(self, settings: MailerSettings) -> None:
        self._settings = settings
        self._lanes = Lanes(settings.smtp_connections)
        self._idle: list[_Session] = []
        self._tls: ssl.SSLContext | None = None
        self._failures = 0
        self._one_at_a_time = asyncio.Lock()
        self._closing = asyncio.Event()
        self.trouble: str | None = None
        """Why no connection can be made, as a sentence; None while that is not known."""

    @property
    def where(self) -> str:
        """Return host and port."""
        return f"{self._settings.smtp_host}:{self._settings.smtp_port}"

    @property
    def busy(self) -> int:
        """Return how many connections carry a mail right now."""
        return self._lanes.busy

    @asynccontextmanager
    async def slot(self, lane: Lane) -> "AsyncIterator[Slot]":
        """Wait for the lane's turn and for a connection.

        Raises:
            RelayAway: there is none.
        """
        await self._enter(lane)
        try:
            if self._closing.is_set():
                raise RelayAway("this mailer is ending")
            slot = Slot(self, self._reuse() or await self._open())
            try:
                yield slot
            finally:
                self._give_back(slot.session)
        finally:
            self._lanes.leave(lane)

    async def _enter(self, lane: Lane) -> None:
        if self._lanes.try_enter(lane):
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._lanes.enter(lane)
        except TimeoutError:
            raise RelayAway(f"waited {PATIENCE:g} s for a connection to the relay {self.where}") from None

    def sweep(self) -> None:
        """Close what was not used for a while."""
        oldest = asyncio.get_running_loop().time() - self._settings.smtp_idle_seconds
        stale = [session for session in self._idle if session.idle_since < oldest or not session.dialogue.usable]
        self._idle = [session for session in self._idle if session not in stale]
        for session in stale:
            session.dialogue.close()

    def give_up(self) -> None:
        """Wait for an absent relay no longer: this process is to end."""
        self._closing.set()

    def close(self) -> None:
        """Close all connections that carry no mail."""
        for session in self._idle:
            session.dialogue.close()
        self._idle.clear()

    def _reuse(self) -> _Session | None:
        oldest = asyncio.get_running_loop().time() - self._settings.smtp_idle_seconds
        while self._idle:
            session = self._idle.pop()  # the one used last: the rest may grow old and be closed
            if session.dialogue.usable and session.idle_since >= oldest:
                return session
            session.dialogue.close()
        return None

    def _give_back(self, session: _Session) -> None:
        if not session.dialogue.usable or session.mails >= self._settings.smtp_mails_per_connection:
            session.dialogue.close()
            return
        session.idle_since = asyncio.get_running_loop().time()
        self._idle.append(session)

    async def _open(self) -> _Session:
        """Connect; while the relay is away, one at a time tries and the others wait behind it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        if self._failures == 0:
            try:
                return await self._connect()
            except RelayAway:
                pass
        async with self._one_at_a_time:
            while self._failures and loop.time() < deadline and not self._closing.is_set():
                pause = random.uniform(0.5, 1.0) * min(2.0 ** (self._failures - 1), LONGEST_BACK_OFF)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), pause)
                    break
                with suppress(RelayAway):
                    return await self._connect()
        if self._failures:
            raise RelayAway(self.trouble)
        return await self._connect()

    async def _connect(self) -> _Session:
        settings, failures = self._settings, self._failures
        smtp = SMTP(
            hostname=settings.smtp_host,
            port=settings.smtp_port,
            use_tls=settings.smtp_tls is Tls.TLS,
            start_tls=settings.smtp_tls is Tls.STARTTLS,  # True: required; aiosmtplib's default would be "if offered"
            tls_context=await self._tls_context(),
            username=settings.smtp_username,
            password=settings.smtp_password.get_secret_value() if settings.smtp_password else None,
            local_hostname=settings.domain,
            timeout=settings.smtp_timeout,
        )
        try:
            await smtp.connect()
            if smtp.is_ehlo_or_helo_needed:
                await smtp.ehlo()
        except (SMTPException, OSError, ValueError) as error:
            smtp.close()
            self._failed(failures, f"cannot use the relay {self.where}: {_sentence(error)}")
            raise RelayAway(self.trouble) from error
        if self.trouble is not None:
            log.info("the relay takes mail again", relay=self.where)
        self._failures, self.trouble = 0, None
        assert smtp.transport is not None
        return _Session(adopt(smtp.transport, frozenset(smtp.esmtp_extensions)))

    def _failed(self, failures: int, sentence: str) -> None:
        """Note a failure; `failures` is how many there were when this try began: tries side by side count once."""
        if self.trouble is None:
            log.warning("no mail can go out; trying until it can", reason=sentence)
        self._failures, self.trouble = max(self._failures, failures + 1), sentence

    async def _tls_context(self) -> ssl.SSLContext | None:
        if self._settings.smtp_tls is Tls.NONE:
            return None
        if self._tls is None:
            # Reads the CA files: tens of milliseconds, once.
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._settings.smtp_ca_file)
        return self._tls


class Slot:
    """One turn on one connection."""

    def __init__(self, relay: Relay, session: _Session) -> None:
        self.relay = relay
        self.session = session

    async def send(self, sender: str, recipient: str, message: bytes) -> Verdict:
        """Send one mail (not yet dot-stuffed) and return what became of it.

        Raises:
            RelayAway: it was not sent, and not for its own fault.
        """
        try:
            return await self._send(sender, recipient, message)
        except Broken as broken:
            if broken.after_dot or self.session.mails == 0:
                return self._lost(broken)
        # A connection that lay idle may have been closed by the relay at any moment. That is no failed attempt.
        self.session.dialogue.close()
        self.session = await self.relay._connect()
        try:
            return await self._send(sender, recipient, message)
        except Broken as broken:
            return self._lost(broken)

    async def _send(self, sender: str, recipient: str, message: bytes) -> Verdict:
        dialogue, settings = self.session.dialogue, self.relay._settings
        parameters = b""
        if not (sender.isascii() and recipient.isascii()):
            if not dialogue.offers("smtputf8"):
                sentence = f"the relay {self.relay.where} does not offer SMTPUTF8, which this address needs"
                return Verdict(Kind.PERMANENT, sentence, enhanced="5.6.7")
            parameters += b" BODY=8BITMIME SMTPUTF8" if dialogue.offers("8bitmime") else b" SMTPUTF8"
        if dialogue.offers("size"):
            parameters += b" SIZE=%d" % len(message)
        answer = await dialogue.transact(
            _path(sender) + parameters,
            _path(recipient),
            dot_stuffed(message),
            timeout=settings.smtp_timeout,
            data_timeout=settings.smtp_data_timeout,
        )
        self.session.mails += 1
        code, text = answer.reply
        return classify(code, text, recipient_refused=answer.step is Step.RCPT)

    def _lost(self, broken: Broken) -> Verdict:
        when = "after the final dot" if broken.after_dot else "before the mail was out"
        return lost(f"{broken} ({self.relay.where}, {when})", after_dot=broken.after_dot)


def _path(address: str) -> bytes:
    """Return `<address>`; contracts refuse what is unsafe here, this is the last gate before the wire."""
    if _UNSAFE.search(address):
        raise ValueError("an address on the wire must not contain blanks, control characters or angle brackets")
    return b"<" + address.encode() + b">"


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    cause = error.__cause__
    if isinstance(cause, ssl.SSLError) and str(cause) not in text:
        text += f" ({cause})"
    return text
