"""The system that runs on this machine, started by `bellhop up` or by `docker compose up`: its URLs and admin key."""

import fcntl
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from bellhop.cli.addresses import Addresses
from bellhop.cli.errors import CannotRun
from bellhop.cli.secrets import read_admin_key
from bellhop.cli.settings import UpSettings
from bellhop.local.ports import LOOPBACK

CHECKOUT = Path(__file__).parents[2]
COMPOSE_FILE = CHECKOUT / "compose.yaml"
KEY_FILE = "/run/secrets/bellhop/bellhop_admin_key"


@dataclass(frozen=True, slots=True)
class Found:
    """URLs and key of one system."""

    url: str
    mailbox_url: str
    admin_key: str = field(repr=False)


def find(settings: UpSettings) -> Found:
    """Return the running system; if none runs, the one that `bellhop up` would start.

    Raises:
        CannotRun: there is none.
    """
    home = _home(settings)
    if not _up_runs(home) and (found := _in_containers()) is not None:
        return found
    there = Addresses.read(home) if _up_runs(home) else None
    addresses = there or Addresses.of(settings)
    return Found(addresses.gateway, addresses.mailbox, read_admin_key(home))


def check_system(url: str, admin_key: str) -> None:
    """Check that `admin_key` belongs to the gateway at `url`, without sending it the key.

    Raises:
        CannotRun: it belongs to another system, or the gateway is an older version that does not report its identity.
    """
    import httpx

    from bellhop.web.auth import system_id

    try:
        answer = httpx.get(f"{url}/healthz", timeout=30, trust_env=False)
        reported = answer.json().get("system")
    except httpx.TransportError as error:
        raise CannotRun(
            f"Bellhop is not up at {url} ({error}): start it with 'make up', or set BELLHOP_URL to where it runs."
        ) from None
    except (ValueError, AttributeError):
        reported = None
    if reported != system_id(admin_key):
        raise CannotRun(
            f"What answers at {url} is not the Bellhop whose admin key was found, so it is not sent the key:"
            " set BELLHOP_URL and BELLHOP_ADMIN_KEY to those of one system."
        )


def _home(settings: UpSettings) -> Path:
    """Return the folder of `bellhop up`: in the current folder, or in the checkout."""
    default = UpSettings.model_fields["home"].default
    if settings.home == default and not settings.home.exists() and (CHECKOUT / default).exists():
        return CHECKOUT / settings.home
    return settings.home


def _up_runs(home: Path) -> bool:
    """Return whether `bellhop up` holds its lock."""
    try:
        with (home / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _in_containers() -> Found | None:
    """Return the system of Docker Compose, which reports the published ports; None if it does not run."""
    key = _compose("exec", "-T", "gateway", "cat", KEY_FILE)
    gateway = _compose("port", "front", "8000") if key else None
    if not key or not gateway:
        return None
    mailbox = _compose("port", "mailpit", "8025")
    return Found(_url(gateway), _url(mailbox or f"{LOOPBACK}:8025"), key)


def _url(published: str) -> str:
    """Return the URL of a published address like `0.0.0.0:9100`, to which not every system can connect."""
    return f"http://{published.replace('0.0.0.0:', f'{LOOPBACK}:')}"


def _compose(*arguments: str) -> str | None:
    """Return the output of `docker compose …`, or None if it fails."""
    docker = shutil.which("docker")
    if docker is None or not COMPOSE_FILE.exists():
        return None
    command = [docker, "compose", "-f", str(COMPOSE_FILE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
