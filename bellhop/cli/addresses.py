"""The addresses of the services that `bellhop up` runs; all of them are determined here."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bellhop.cli import secrets
from bellhop.cli.settings import UpSettings
from bellhop.local.ports import LOOPBACK

FILE = "addresses.json"
"""In the folder of the running system."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """The URLs on this machine, and the two public URLs."""

    gateway: str
    notifier: str
    leaderboard: str
    mailbox: str
    management: str
    public: str
    """The URL of the gateway in mails."""
    public_notifier: str
    """The URL of the notifier in stream tokens and pages, for browsers."""

    @classmethod
    def of(cls, settings: UpSettings) -> Self:
        """Return the addresses that follow from these settings."""
        gateway, notifier = local(settings.port("gateway")), local(settings.port("notifier"))
        return cls(
            gateway=gateway,
            notifier=notifier,
            leaderboard=local(settings.port("leaderboard")),
            mailbox=local(settings.mailbox_http_port),
            management=local(settings.node_management_port),
            public=settings.public_url or gateway,
            public_notifier=settings.notifier_url or notifier,
        )

    def write(self, home: Path) -> None:
        """Write them to a file for other commands, whose environment may have other ports."""
        secrets.write(home / FILE, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, home: Path) -> Self | None:
        """Return the addresses that the system in `home` wrote, or None."""
        try:
            return cls(**json.loads((home / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def local(port: int) -> str:
    """Return the URL of a port of this machine."""
    return f"http://{LOOPBACK}:{port}"
