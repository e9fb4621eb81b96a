"""A second network on this machine, whose cable a test may spoil. Needs root; touches nothing but what it makes."""

import asyncio
import contextlib
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.faults.proxy import Proxy

# Forwards from the far side back to ours, so that everything crosses the cable twice.
_FORWARDER = """
import asyncio, sys
async def main(port, host, target):
    async def pump(r, w):
        try:
            while data := await r.read(65536):
                w.write(data); await w.drain()
        except OSError:
            pass
        finally:
            w.close()
    async def serve(r, w):
        try:
            fr, fw = await asyncio.open_connection(host, target)
        except OSError:
            w.close(); return
        await asyncio.gather(pump(r, fw), pump(fr, w))
    server = await asyncio.start_server(serve, "0.0.0.0", port)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
"""


@dataclass(frozen=True)
class Cable:
    """The near end is ours."""

    name: str
    near: str
    far: str

    def lose(self, share: float) -> None:
        """Lose this share of all packets, in each direction."""
        rule = ("-m", "statistic", "--mode", "random", "--probability", str(share)) if share < 1 else ()
        for chain in ("INPUT", "OUTPUT"):
            self._iptables("-F", chain)
            self._iptables("-A", chain, *rule, "-j", "DROP")

    def mend(self) -> None:
        self._iptables("-F")

    def _iptables(self, *arguments: str) -> None:
        # Inside its own namespace alone.
        _ip("netns", "exec", self.name, "iptables", *arguments)

    @property
    def near_device(self) -> str:
        return f"v{self.name[:12]}"


def available() -> bool:
    """Say whether network namespaces and iptables can be had here."""
    name = f"try{secrets.token_hex(3)}"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        _ip("netns", "add", name)
        try:
            _ip("netns", "exec", name, "iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random",
                "--probability", "0.1", "-j", "DROP")  # fmt: skip
        finally:
            _ip("netns", "del", name)
        return True
    return False


@asynccontextmanager
async def cable() -> AsyncIterator[Cable]:
    """Lay a cable into a namespace of its own, until the block ends."""
    number = secrets.randbelow(200)
    made = Cable(f"bh{secrets.token_hex(3)}", f"10.213.{number}.1", f"10.213.{number}.2")
    _ip("netns", "add", made.name)
    try:
        _ip("link", "add", made.near_device, "type", "veth", "peer", "name", "far", "netns", made.name)
        _ip("addr", "add", f"{made.near}/30", "dev", made.near_device)
        _ip("link", "set", made.near_device, "up")
        inside = ("netns", "exec", made.name, "ip")
        _ip(*inside, "addr", "add", f"{made.far}/30", "dev", "far")
        _ip(*inside, "link", "set", "far", "up")
        _ip(*inside, "link", "set", "lo", "up")
        yield made
    finally:
        _ip("netns", "del", made.name)  # takes both ends of the cable with it


@asynccontextmanager
async def detour(cable: Cable, target: int, port: int) -> AsyncIterator[None]:
    """Make `cable.far:port` lead to `target` on our loopback address, through the cable and back."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, cable.near, 0)
    back = server.sockets[0].getsockname()[1]
    forwarder = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", cable.name, sys.executable, "-c", _FORWARDER, str(port), cable.near, str(back),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert forwarder.stdout is not None
    assert await asyncio.wait_for(forwarder.stdout.readline(), 10) == b"ready\n"
    try:
        yield
    finally:
        forwarder.kill()
        await forwarder.communicate()
        server.close()
        await proxy.stop()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
