"""TCP ports on this machine: find free ones, and the program that uses a port."""

import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from bellhop.cli.errors import CannotRun

LOOPBACK = "127.0.0.1"
_LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp


def free_ports(count: int) -> list[int]:
    """Return `count` different ports on which no program listens; another program may take one afterwards."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def check_free(port: int, what: str, variable: str) -> None:
    """Check that `port` is free; `what` and `variable` are its purpose and its setting, for the error.

    Raises:
        CannotRun: it is taken; the text names the program that uses it.
    """
    with socket.socket() as probe:
        # As servers do: a port with connections in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except PermissionError:
            raise CannotRun(
                f"Port {port} for {what} needs more rights than you have: set {variable} to a port above 1023."
            ) from None
        except OSError:
            holder = holder_of(port)
            by = f" by {holder}" if holder else ""
            raise CannotRun(
                f"Port {port} for {what} is taken{by}: stop that program, or set {variable} to another port."
            ) from None


def holder_of(port: int) -> str | None:
    """Return "program (process id)" of the process that listens on `port`; None if it is not known."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or belongs to another user
            if any(_target(link) in inodes for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return None


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""  # closed in the meantime


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return inodes
