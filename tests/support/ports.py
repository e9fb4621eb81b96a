"""Ports for what is killed and started again."""

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LOWEST = 10_000


def first_of_clients() -> int:
    """Return where the range begins from which the kernel takes ports for clients, and for port 0."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def lasting_ports(count: int) -> list[int]:
    """Return free ports that no client gets by chance while their server is down."""
    found: list[int] = []
    candidates = list(range(LOWEST, first_of_clients()))
    random.SystemRandom().shuffle(candidates)
    for port in candidates:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"no {count} ports are free between {LOWEST} and {first_of_clients()}")
