"""A real HTTP server in a thread, and the plainest possible client: bytes out, bytes in."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from bellhop.web.server import Server


@dataclass(frozen=True)
class Answer:
    """One HTTP response as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@contextmanager
def serving(app: FastAPI, shutdown_seconds: float = 5) -> Iterator[int]:
    """Serve `app` as a service does, on a free port, which is given; leaving begins an orderly shutdown."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        server = Server(app, listener, shutdown_seconds)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start within 10 seconds"
            time.sleep(0.01)
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive(), "the server did not stop within 10 seconds"


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    """Open a connection from the address `source` (all of 127.0.0.0/8 is this machine)."""
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def exchange(port: int, request: bytes, source: str = "127.0.0.1") -> Answer:
    """Send `request` as it is on a connection of its own and return the answer."""
    with connect(port, source) as connection:
        connection.sendall(request)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer; its length must be announced."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, f"the connection was closed after {data!r}"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        chunk = connection.recv(65536)
        assert chunk, "the connection was closed in the middle of the body"
        body += chunk
    return Answer(int(first.split(" ")[1]), headers, body)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP/1.1 request; underscores in header names become hyphens."""
    lines = {"host": "localhost", **({"content-length": str(len(body))} if body else {}), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body
