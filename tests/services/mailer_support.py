"""A relay whose every word a test decides, for what a well-behaved server cannot show."""

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.mailer.settings import MailerSettings

DROP = "drop"
SILENCE = "silence"
Answer = str | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class ScriptedRelay:
    """Speaks SMTP over a socket, line by line. `replies` maps a verb (or `.`) to answers, first in first out.

    An answer is a text, `DROP`, `SILENCE`, or a function that writes whatever it likes and then leaves.
    """

    extensions: tuple[str, ...] = ("PIPELINING", "SIZE 10000000", "8BITMIME")
    greeting: str = "220 test.invalid ESMTP"
    replies: dict[str, list[Answer]] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    implicit: bool = False
    """TLS from the first byte on, not after STARTTLS."""
    port: int = 0
    connections: int = 0
    commands: list[str] = field(default_factory=list)
    mails: list[bytes] = field(default_factory=list)
    packets: list[bytes] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def __aenter__(self) -> "ScriptedRelay":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self.tls if self.implicit else None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            writer.write(self.greeting.encode() + b"\r\n")
            while line := await reader.readline():
                if not await self._answer(line.decode().rstrip("\r\n"), reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, command: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.commands.append(command)
        verb = command.split(" ")[0].split(":")[0].upper()
        reply = await self._reply(verb, reader, writer)
        if reply is None:
            return False
        writer.write(reply.encode() + b"\r\n")
        if verb == "STARTTLS" and reply.startswith("220"):
            assert self.tls is not None
            await writer.start_tls(self.tls)
        if verb == "DATA" and reply.startswith("354"):
            return await self._take(reader, writer)
        return verb != "QUIT" and not reply.startswith("421")

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        mail = b""
        while (line := await reader.readline()) != b".\r\n":
            if not line:
                return False
            mail += line
        self.mails.append(mail)
        reply = await self._reply(".", reader, writer)
        if reply is None:
            return False
        writer.write(reply.encode() + b"\r\n")
        return not reply.startswith("421")

    async def _reply(self, verb: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        """Return the text to answer with; None ends the connection."""
        answer = scripted.pop(0) if (scripted := self.replies.get(verb)) else self._usual(verb)
        if callable(answer):
            await answer(reader, writer)
            return None
        if answer == SILENCE:
            await asyncio.Event().wait()
        return None if answer == DROP else answer

    def _usual(self, verb: str) -> str:
        if verb == "EHLO":
            lines = ["test.invalid", *self.extensions]
            return "\r\n".join([*(f"250-{line}" for line in lines[:-1]), f"250 {lines[-1]}"])
        defaults = {"DATA": "354 go on", ".": "250 2.0.0 OK", "QUIT": "221 bye", "STARTTLS": "220 go on"}
        return defaults.get(verb, "250 2.1.0 OK")


def mailer_settings(port: int, **changes: Any) -> MailerSettings:
    """Settings of a mailer whose relay listens on a port of this machine."""
    values: dict[str, Any] = {
        "amqp_url": "amqp://nobody@127.0.0.1:1/",
        "database_url": "sqlite+aiosqlite://",
        "token_key": "0" * 32,
        "smtp_host": "127.0.0.1",
        "smtp_port": port,
        "smtp_tls": "none",
        "smtp_timeout": 5.0,
        "mail_from": "hello@bellhop.example",
    }
    return MailerSettings(**values | changes)


def relay(port: int, name: str, **changes: Any) -> dict[str, Any]:
    """One of several relays, as it stands in BELLHOP_RELAYS."""
    return {"name": name, "host": "127.0.0.1", "port": port, "tls": "none", "timeout": 5} | changes


def certificate(folder: Path, name: str = "localhost") -> tuple[Path, ssl.SSLContext]:
    """Make a self-signed certificate; return it, and a server's context that uses it."""
    key, pem = folder / f"{name}.key", folder / f"{name}.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(pem), "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key)
    return pem, context
