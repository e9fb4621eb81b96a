"""Start HAProxy with the variables of its configuration.

`BELLHOP_FRONT_TRUSTED`: the networks of trusted proxies, separated by commas. The word `host` means the address that
this machine has for containers: a proxy that runs on the host, outside of containers.

The connection limits of the frontends are shares of the number that the limit of open files allows.
"""

import ipaddress
import os
import resource
import sys
from pathlib import Path

NO_NETWORK = "255.255.255.255"
MAX_CONNECTIONS = 30_000
"""A connection may need a buffer; haproxy.cfg limits all buffers, and compose.yaml the memory."""
FILES_OF_CONNECTION = 2
OTHER_FILES = 1_000
"""Listeners, health checks and the name server."""
HEALTH_CONNECTIONS = 100
SHARES = {"NOTIFIER": 0.80, "GATEWAY": 0.14, "LEADERBOARD": 0.05}
"""Shares of all connections: a reader of a live stream keeps one for hours, a request for milliseconds."""


def connections(files: int) -> dict[str, int]:
    """Return the connection limits for a process that may open so many files.

    Raises:
        ValueError: so few files are not sufficient.
    """
    whole = min(MAX_CONNECTIONS, (files - OTHER_FILES) // FILES_OF_CONNECTION)
    if whole < 10 * HEALTH_CONNECTIONS:
        raise ValueError(f"the front may open {files} files only; 3,000 are the least. Raise `ulimits: nofile`")
    limits = {"FRONT_CONNECTIONS": whole, "FRONT_FILES": whole * FILES_OF_CONNECTION + OTHER_FILES}
    for name, share in SHARES.items():
        limits[f"FRONT_{name}_CONNECTIONS"] = int((whole - HEALTH_CONNECTIONS) * share)
    return limits


def host_address(routes: str) -> str | None:
    """Return the address of the default route, from the text of /proc/net/route."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            return str(ipaddress.IPv4Address(int.from_bytes(bytes.fromhex(fields[2]), "little")))
    return None


def trusted(setting: str, routes: str) -> str:
    """Return the networks of `setting`, separated by blanks, for haproxy.cfg.

    Raises:
        ValueError: a part is not a network.
    """
    found = []
    for part in filter(None, map(str.strip, setting.split(","))):
        network = host_address(routes) if part == "host" else part
        found.append(str(ipaddress.ip_network(network or NO_NETWORK)))
    return " ".join(found) or NO_NETWORK


if __name__ == "__main__":
    try:
        networks = trusted(os.environ.get("BELLHOP_FRONT_TRUSTED", ""), Path("/proc/net/route").read_text())
    except ValueError as error:
        sys.exit(f"BELLHOP_FRONT_TRUSTED: {error}. Name networks such as 192.0.2.0/24, or host.")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        limits = connections(1_000_000 if hard == resource.RLIM_INFINITY else hard)
    except ValueError as error:
        sys.exit(f"{error}.")
    os.environ |= {name: str(value) for name, value in limits.items()} | {"FRONT_TRUSTED": networks}
    arguments = sys.argv[1:] or ["-W", "-db"]
    os.execvp("haproxy", ["haproxy", *arguments, "-f", "/etc/haproxy/haproxy.cfg"])  # noqa: S606, S607
