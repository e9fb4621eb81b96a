"""A server that speaks SendGrid's `POST /v3/mail/send`, and answers what a test says."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass
class SendGridServer:
    """Takes every mail with a 202, unless `answers` holds something else: (status, headers, body), first in first out.

    The status 0 closes the connection without an answer.
    """

    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    mails: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> "SendGridServer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def refuse(self, status: int, *errors: dict[str, Any], **headers: str) -> None:
        """Answer the next mail with the errors that SendGrid would give."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers.append((status, named, orjson.dumps({"errors": list(errors)})))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((first, headers))
                status, more, answer = 202, {"X-Message-Id": "abc"}, b""
                if first.startswith("POST") and self.answers:
                    status, more, answer = self.answers.pop(0)
                if status == 0:
                    return
                if first.startswith("POST") and status == 202:
                    self.mails.append(orjson.loads(body))
                fields = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                text = f"HTTP/1.1 {status} x\r\n{fields}Content-Length: {len(answer)}\r\n\r\n"
                writer.write(text.encode() + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
