"""A real SMTP server for tests, whose replies a test can set."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass(frozen=True)
class Mail:
    """One mail as it came."""

    sender: str
    recipients: list[str]
    content: bytes
    connection: int
    """Which connection it came by, counted from 1."""

    @property
    def message(self) -> EmailMessage:
        """The mail parsed."""
        return message_from_bytes(self.content, policy=default)  # type: ignore[arg-type]


class SmtpServer:
    """Takes every mail into `mails`, unless told otherwise by `replies` and the like."""

    def __init__(self) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.mails: list[Mail] = []
        self.connections = 0
        self.mail_replies: list[str] = []
        """Answers to the next MAIL commands, first in first out; without one they are accepted."""
        self.recipient_replies: dict[str, list[str]] = defaultdict(list)
        """Per recipient: answers to its next RCPT commands; the last one stays."""
        self.data_replies: list[str] = []
        """Answers to the next final dots; the mail of one that does not begin with 2 is not in `mails`."""
        self.delay = 0.0
        """Seconds before the reply to the final dot."""
        self.hold = asyncio.Event()
        """While cleared, the reply to the final dot does not come; set at first."""
        self.hold.set()
        self._server: asyncio.Server | None = None
        self.transports: set[Any] = set()

    async def start(self, port: int = 0) -> None:
        """Listen on a free port, or on `port`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Smtp(self), self.host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop all connections, as a crash does. `start(self.port)` brings it back."""
        if self._server is not None:
            self._server.close()
            self.drop()
            await self._server.wait_closed()
            self._server = None

    def drop(self) -> None:
        """Drop all connections in the middle of whatever they do."""
        for transport in list(self.transports):
            transport.abort()

    def to(self, recipient: str) -> list[Mail]:
        """Return the mails to one recipient."""
        return [mail for mail in self.mails if recipient in mail.recipients]

    # What aiosmtpd calls.

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.mail_replies:
            reply = self.mail_replies.pop(0)
            if not reply.startswith("2"):
                return reply
        envelope.mail_from = address
        return "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        replies = self.recipient_replies.get(address)
        if replies:
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            if not reply.startswith("2"):
                return reply
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: "_Smtp", session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.delay:
            await asyncio.sleep(self.delay)
        await self.hold.wait()
        reply = self.data_replies.pop(0) if self.data_replies else "250 2.0.0 OK"
        if reply.startswith("2"):
            content = envelope.original_content or b""
            self.mails.append(Mail(envelope.mail_from or "", list(envelope.rcpt_tos), content, server.number))
        return reply


class _Smtp(SMTP):
    def __init__(self, owner: SmtpServer) -> None:
        super().__init__(owner, hostname="test.invalid", enable_SMTPUTF8=True, loop=asyncio.get_running_loop())
        self._owner = owner
        self.number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._owner.connections += 1
        self.number = self._owner.connections
        self._owner.transports.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.transports.discard(self.transport)
        super().connection_lost(error)
