"""One mail transaction on an open SMTP connection (RFC 5321, 3.3), and what is known if the connection is lost.

aiosmtplib opens the connection: greeting, EHLO, STARTTLS, AUTH. Its transactions are not used, for two reasons. It
reports a connection lost before the final dot and one lost after it in the same way, but only in the second case may a
retry cause a second copy. And it waits for each reply before the next command; a server that offers PIPELINING
(RFC 2920) takes MAIL, RCPT and DATA in one packet, which halves the round trips.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple, cast

from bellhop import faults

MAX_REPLY_BYTES = 64 * 1024
# A bare CR within a line is ignored: if the reply to the final dot was refused for it, a retry would cause a duplicate.
_LINE = re.compile(rb"(\d{3})(?:([ -])([^\n]*))?\r?\n")


class Step(StrEnum):
    """The step of the transaction that a reply belongs to."""

    RSET = "RSET"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    DOT = "final dot"


class Reply(NamedTuple):
    """One reply; `text` has its lines joined by line feeds, without codes."""

    code: int
    text: str


class Answer(NamedTuple):
    """The final reply to a mail, and its step."""

    step: Step
    reply: Reply


class Broken(Exception):
    """The connection was lost, or became unusable, before the final reply to the mail."""

    after_dot = False
    """The final dot was handed to the network: the server may have taken the mail."""


class Dialogue(asyncio.Protocol):
    """The protocol of a connection that is ready for mail."""

    def __init__(self, transport: asyncio.Transport, extensions: Mapping[str, str]) -> None:
        """`extensions`: what EHLO announced, names in lower case, each with its parameters."""
        self._transport = transport
        # `resume_writing` is called when the last byte, that of the final dot, was handed to the network.
        # (1, because at 0 a TLS transport reports a pause for an empty buffer.)
        transport.set_write_buffer_limits(high=1, low=0)
        self._extensions = extensions
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._received_bytes = 0
        self._lines: list[bytes] = []
        self._replies: list[Reply] = []
        self._expected = 0
        self._waiter: asyncio.Future[None] | None = None
        self._needs_reset = False
        self._failure: str | None = None
        self._written = True

    @property
    def usable(self) -> bool:
        """Return whether another mail may be sent over this connection."""
        return self._failure is None and not self._transport.is_closing()

    def offers(self, extension: str) -> bool:
        """Return whether the server announced `extension` (lower case)."""
        return extension in self._extensions

    @property
    def max_bytes(self) -> int | None:
        """Return the maximum size of a mail that the server announced (RFC 1870), or None."""
        limit = self._extensions.get("size", "").strip()
        return int(limit) if limit.isdecimal() and int(limit) > 0 else None

    def close(self) -> None:
        """Send QUIT and close, without waiting for the reply."""
        if self.usable:
            self._transport.write(b"QUIT\r\n")
        self._fail("the connection was closed by us")

    async def transact(
        self, mail: bytes, recipient: bytes, message: bytes, *, timeout: float, data_timeout: float
    ) -> Answer:
        """Send one mail and return the final reply to it.

        `mail` is the argument of MAIL FROM with its parameters, `recipient` that of RCPT TO, `message` is dot-stuffed
        and ends with the final dot. `timeout` (seconds) is for each reply, and for the server to read some of the
        message; `data_timeout` is for the reply after the final dot, from the moment when the dot is sent.

        Raises:
            Broken: there is no final reply. If `after_dot` is set, the server may have accepted the mail.
        """
        commands = [(Step.MAIL, b"MAIL FROM:" + mail), (Step.RCPT, b"RCPT TO:" + recipient), (Step.DATA, b"DATA")]
        if self._needs_reset:
            commands.insert(0, (Step.RSET, b"RSET"))
        self._needs_reset = True
        faults.point("mail.before_data")
        replies = await self._envelope(commands, timeout)
        for (step, _), reply in zip(commands, replies, strict=False):
            # A server that refuses RSET keeps the state of the previous mail: another connection is needed.
            if not _accepted(step, reply) and (reply.code < 400 or step is Step.RSET):
                self._fail(f"the server answered {reply.code} {reply.text} to {step}")
                raise Broken(self._failure)
            if not _accepted(step, reply):
                await self._end_transaction(replies, len(commands), timeout)
                return Answer(step, reply)
        reply = await self._deliver(message, timeout, data_timeout)
        self._needs_reset = reply.code != 250
        self._close_after_421(reply)
        return Answer(Step.DOT, reply)

    async def _deliver(self, message: bytes, timeout: float, data_timeout: float) -> Reply:
        """Send the message and return the reply to its final dot."""
        self._expected = 1  # a server may refuse a message before it has read all of it
        self._transport.write(message)
        faults.point_when_written("mail.after_dot")
        try:
            await self._write_all(timeout)
            (reply,) = await self._read(1, data_timeout)
            if not self._written:
                self._fail(f"the server answered {reply.code} {reply.text} before it had read the mail")
                if reply.code < 400:
                    raise Broken(self._failure)
        except Broken as broken:
            broken.after_dot = self._written
            raise
        return reply

    async def _write_all(self, timeout: float) -> None:
        """Return when the whole message is handed to the network, the server has replied, or the connection is lost."""
        while not (self._written or self._replies or self._failure is not None):
            before = self._transport.get_write_buffer_size()
            await self._wait_for(lambda: self._written or bool(self._replies), timeout)
            if not self._written and self._transport.get_write_buffer_size() >= before:
                self._fail(f"the server read nothing of the mail for {timeout:g} s")

    async def _envelope(self, commands: list[tuple[Step, bytes]], timeout: float) -> list[Reply]:
        if "pipelining" in self._extensions:
            self._write(b"".join(command + b"\r\n" for _, command in commands))
            return await self._read(len(commands), timeout)
        replies = []
        for step, command in commands:
            self._write(command + b"\r\n")
            replies += await self._read(1, timeout)
            if not _accepted(step, replies[-1]):
                break
        return replies

    async def _end_transaction(self, replies: list[Reply], commands: int, timeout: float) -> None:
        """End the transaction after a refusal, so that the connection can be used for the next mail."""
        for reply in replies:
            self._close_after_421(reply)
        if not self.usable or len(replies) < commands or replies[-1].code != 354:
            return
        # RFC 2920, 3.1: DATA was already sent, and the server waits for a message. Send an empty one.
        self._transport.write(b".\r\n")
        try:
            await self._read(1, timeout)
        except Broken:
            return

    def _close_after_421(self, reply: Reply) -> None:
        if reply.code == 421:
            self._fail("the server closes the connection")

    def _write(self, data: bytes) -> None:
        if not self.usable:
            raise Broken(self._failure or "the connection is closing")
        self._transport.write(data)

    async def _read(self, count: int, timeout: float) -> list[Reply]:
        """Return the next `count` replies, or fewer if the server closed the connection after an error reply."""
        self._expected = count
        if not await self._wait_for(lambda: len(self._replies) >= count, timeout):
            self._fail(f"the server was silent for {timeout:g} s")
        replies, self._replies, self._expected, self._received_bytes = self._replies, [], 0, 0
        if len(replies) < count and not any(reply.code >= 400 for reply in replies):
            raise Broken(self._failure or "the connection is lost")
        return replies

    async def _wait_for(self, done: Callable[[], bool], timeout: float) -> bool:
        """Wait until `done` or the connection is lost; return False if neither happens within `timeout` seconds."""
        deadline = self._loop.time() + timeout
        while not done() and self._failure is None:
            if self._loop.time() >= deadline:
                return False
            self._waiter = self._loop.create_future()
            timer = self._loop.call_at(deadline, self._wake)
            try:
                await self._waiter
            except asyncio.CancelledError:
                self._fail("the transaction was cancelled by us")
                raise
            finally:
                timer.cancel()
                self._waiter = None
        return True

    # Called by the event loop.

    def data_received(self, data: bytes) -> None:
        """Collect replies. After an unexpected one, close the connection: the next replies could be mismatched."""
        if self._failure is not None:
            return
        self._received_bytes += len(data)
        buffer = self._buffer + data
        end = 0
        while match := _LINE.match(buffer, end):
            end = match.end()
            self._lines.append((match[3] or b"").replace(b"\r", b""))
            if match[2] != b"-":
                text = b"\n".join(self._lines).decode("utf-8", "replace")
                self._replies.append(Reply(int(match[1]), text))
                self._lines.clear()
        self._buffer = buffer[end:]
        if b"\n" in self._buffer:
            self._fail(
                f"the server answered {self._buffer[:80].decode('ascii', 'replace').strip()!r}, which is not SMTP"
            )
        elif self._received_bytes > MAX_REPLY_BYTES:
            self._fail("the server's reply has no end")
        elif len(self._replies) > self._expected:
            reply = self._replies[-1]
            self._replies.clear()  # it is unknown which of them belong to which command
            self._fail(f"the server sent {reply.code} {reply.text} without a command")
        elif len(self._replies) == self._expected:
            self._wake()

    def pause_writing(self) -> None:
        """Note that bytes are still to be handed to the network."""
        self._written = False

    def resume_writing(self) -> None:
        """Note that every byte was handed to the network."""
        self._written = True
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is lost."""
        self._fail(f"the server closed the connection ({exc})" if exc else "the server closed the connection")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            if self._written:
                self._transport.close()
            else:
                # `close` would continue to write: the server could get a mail that was reported as not sent.
                self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _accepted(step: Step, reply: Reply) -> bool:
    if step is Step.DATA:
        return reply.code == 354
    return reply.code == 250 or (step is Step.RCPT and reply.code == 251)


def adopt(transport: asyncio.BaseTransport, extensions: Mapping[str, str]) -> Dialogue:
    """Take over an open connection from the protocol that opened it."""
    stream = cast(asyncio.Transport, transport)
    dialogue = Dialogue(stream, extensions)
    stream.set_protocol(dialogue)
    return dialogue
