"""The Bellhop that runs here, started by `bellhop up` or by `docker compose up`: where it is, and its admin key."""

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
    """One system, its addresses and its key belonging together."""

    url: str
    mailbox_url: str
    admin_key: str = field(repr=False)


def find(settings: UpSettings) -> Found:
    """Return the system that runs; where none does, the one that `bellhop up` would start again.

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
    """Make sure that the gateway at `url` is the one that `admin_key` is of, before it is sent the key.

    Raises:
        CannotRun: it is another one's, or an older version that does not tell.
    """
    import httpx

    from bellhop.web.auth import system_id

    try:
        answer = httpx.get(f"{url}/healthz", timeout=30, trust_env=False)
        told = answer.json().get("system")
    except httpx.TransportError as error:
        raise CannotRun(
            f"Bellhop is not up at {url} ({error}): start it with 'make up', or set BELLHOP_URL to where it runs."
        ) from None
    except (ValueError, AttributeError):
        told = None
    if told != system_id(admin_key):
        raise CannotRun(
            f"What answers at {url} is not the Bellhop whose admin key was found, so it is not sent the key:"
            " set BELLHOP_URL and BELLHOP_ADMIN_KEY to those of one system."
        )


def _home(settings: UpSettings) -> Path:
    """Return the folder of `bellhop up`: from another folder than the checkout, the checkout's."""
    default = UpSettings.model_fields["home"].default
    if settings.home == default and not settings.home.exists() and (CHECKOUT / default).exists():
        return CHECKOUT / settings.home
    return settings.home


def _up_runs(home: Path) -> bool:
    """Say whether `bellhop up` holds its lock."""
    try:
        with (home / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _in_containers() -> Found | None:
    """Ask Docker Compose, which knows the ports that it published, wherever they were set."""
    key = _compose("exec", "-T", "gateway", "cat", KEY_FILE)
    gateway = _compose("port", "front", "8000") if key else None
    if not key or not gateway:
        return None
    mailbox = _compose("port", "mailpit", "8025")
    return Found(_url(gateway), _url(mailbox or f"{LOOPBACK}:8025"), key)


def _url(published: str) -> str:
    """Return the URL of `0.0.0.0:9100`, which is not an address to connect to everywhere."""
    return f"http://{published.replace('0.0.0.0:', f'{LOOPBACK}:')}"


def _compose(*arguments: str) -> str | None:
    """Return what `docker compose …` prints, or None where it fails."""
    docker = shutil.which("docker")
    if docker is None or not COMPOSE_FILE.exists():
        return None
    command = [docker, "compose", "-f", str(COMPOSE_FILE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
