"""Find in the logs of a private RabbitMQ node why it did not start, and return it as one sentence."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from bellhop.local.ports import holder_of

_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \S+ \[\w+\] <[\d.]+> ?", re.MULTILINE)
LONGEST_CHARACTERS = 300

NAMES = {
    "amqp": "AMQP",
    "management": "management",
    "prometheus": "metrics",
    "distribution": "Erlang distribution",
    "epmd": "epmd",
}
"""Purpose of each port of a node; `BELLHOP_NODE_<name>_PORT` sets the port."""


def reason(text: str, folder: Path, ports: Mapping[str, int]) -> str | None:
    """Return why the node of `folder` ended, from the `text` of its logs; None if no known reason is found.

    `ports`: its ports, by the names of `NAMES`.
    """
    text = _PREFIX.sub("", text)
    for pattern, explain in _KNOWN:
        if found := re.search(pattern, text):
            return explain(found, folder, ports)
    return _own_words(text)


def _cookie(found: re.Match[str], _folder: Path, _ports: Mapping[str, int]) -> str:
    return f"others than its owner may read {found[1]}, which Erlang refuses: run 'chmod 400 {found[1]}'."


def _port(found: re.Match[str], _folder: Path, ports: Mapping[str, int]) -> str:
    return taken(int(found[1]), ports)


def _epmd(_found: re.Match[str], _folder: Path, ports: Mapping[str, int]) -> str:
    return taken(ports["epmd"], ports)


def taken(port: int, ports: Mapping[str, int]) -> str:
    """Return the sentence for a port of the node that another program uses."""
    name = next((name for name, number in ports.items() if number == port), None)
    what = f" for its {NAMES[name]}" if name else ""
    move = f"set BELLHOP_NODE_{name.upper()}_PORT to another port" if name else "move that one"
    holder = holder_of(port)
    by = f" by {holder}" if holder else ""
    return f"port {port}{what} is taken{by}: stop that program, or {move}."


def _disk(_found: re.Match[str], folder: Path, _ports: Mapping[str, int]) -> str:
    return f"the disk of {folder} is full: make room on it."


def _version(_found: re.Match[str], folder: Path, _ports: Mapping[str, int]) -> str:
    return (
        f"{folder / 'data'} was written by another version of RabbitMQ, and this one cannot read it: install that"
        " version again, or move the folder to start with empty queues."
    )


def _rights(_found: re.Match[str], folder: Path, _ports: Mapping[str, int]) -> str:
    return f"it may not read or write a file in {folder}: all of it must belong to the user that runs Bellhop."


_KNOWN: tuple[tuple[str, Callable[[re.Match[str], Path, Mapping[str, int]], str]], ...] = (
    (r"Cookie file (\S+) must be accessible by owner only", _cookie),
    (r"\{acceptor,\s*\{[\d,]+\},\s*(\d+)\},\s*eaddrinuse", _port),
    (r"could not bind to distribution port (\d+)", _port),
    (r"no_reg_reply_from_epmd|epmd: .*Address already in use", _epmd),
    (r"\benospc\b|[Nn]o space left on device", _disk),
    (
        r"failed_to_initialize_feature_flags_registry|incompatible_feature_flags"
        r"|disabled_(?:required|mandatory)_feature_flag",
        _version,
    ),
    (r"\beacces\b|[Pp]ermission denied", _rights),
)


def _own_words(text: str) -> str | None:
    """Return the text after BOOT FAILED, on one line."""
    _, found, after = text.partition("BOOT FAILED")
    lines = [line.strip() for line in after.splitlines() if line.strip().strip("=")]
    lines = [line for line in lines if line not in ("BOOT FAILED", "Exception during startup:")]
    words = " ".join(" ".join(lines).split())
    if not found or not words:
        return None
    return words if len(words) <= LONGEST_CHARACTERS else words[:LONGEST_CHARACTERS] + "…"
