"""The servers that mails go to: Postfix's `smtp-sink` for rates, and a small one of our own that tells when each came.

`smtp_sink` uses, in this order: the path it is given, an installed smtp-sink, one that `bench/fetch-smtp-sink` unpacks
from Debian's package, and, saying so, our own. `python -m bench.sink PORT` runs our own.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvloop

from bellhop.local import processes

FETCH = Path(__file__).parent / "fetch-smtp-sink"
CONNECTIONS = 256
PATIENCE = 10.0


@contextlib.contextmanager
def smtp_sink(port: int, binary: str = "", *, pipelining: bool = True) -> Iterator[None]:
    """Run a server that takes every mail on `port`, until the block ends; say which one it is."""
    found = find_sink(binary)
    if found is None:
        print("smtp-sink is not there (apt-get install postfix), so mails go to a sink in Python, which is slower")
        command = [sys.executable, "-m", "bench.sink", str(port), *([] if pipelining else ["-p"])]
    else:
        print(f"mails go to {found}")
        command = [found, *([] if pipelining else ["-p"]), "-m", str(CONNECTIONS)]
        command += ["-u", "nobody"] if os.geteuid() == 0 else []
        command += [f"127.0.0.1:{port}", str(CONNECTIONS)]
    running = subprocess.Popen(command, preexec_fn=processes.ends_with_us())
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not take mail on port {port}")
            time.sleep(0.05)
        yield
    finally:
        running.terminate()
        running.wait(5)


def find_sink(path: str = "") -> str | None:
    """Return the path of `smtp-sink`, or None where it cannot be had."""
    if path and not Path(path).exists():
        raise SystemExit(f"{path} is not there: leave --smtp-sink out, and one is looked for")
    found = path or shutil.which("smtp-sink") or shutil.which("smtp-sink", path="/usr/sbin")
    if found:
        return found
    fetched = subprocess.run([FETCH], stdout=subprocess.PIPE, text=True, check=False)
    return fetched.stdout.strip() if fetched.returncode == 0 else None


class Sink(asyncio.Protocol):
    """One connection of our own sink: takes every mail, and says whom it was for when its final dot is there."""

    def __init__(self, took: Callable[[str], None], *, pipelining: bool = True) -> None:
        """`took` is called with the recipient of each mail, before the reply to the final dot."""
        self._took = took
        self._hello = b"250-sink\r\n" + (b"250-PIPELINING\r\n" if pipelining else b"") + b"250 8BITMIME\r\n"
        self._buffer = b""
        self._in_data = False
        self._recipient = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        transport.write(b"220 sink ESMTP\r\n")  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Answer all whole commands in one packet, as a server with PIPELINING does (RFC 2920)."""
        self._buffer += data
        replies = b""
        while True:
            mark = b"\r\n.\r\n" if self._in_data else b"\r\n"
            head, found, rest = self._buffer.partition(mark)
            if not found:
                break
            self._buffer = rest
            replies += self._end_of_mail() if self._in_data else self._command(head)
        if replies:
            self._transport.write(replies)

    def _end_of_mail(self) -> bytes:
        self._in_data = False
        self._took(self._recipient)
        return b"250 2.0.0 Ok\r\n"

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb == b"RCPT":
            self._recipient = line[line.find(b"<") + 1 : line.find(b">")].decode("ascii", "replace")
        elif verb == b"DATA":
            self._in_data = True
            return b"354 go on\r\n"
        elif verb == b"EHLO":
            return self._hello
        elif verb == b"QUIT":
            self._transport.close()
            return b""
        return b"250 2.0.0 Ok\r\n"


async def _serve(port: int, pipelining: bool) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Sink(lambda _: None, pipelining=pipelining), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), "-p" not in sys.argv))
