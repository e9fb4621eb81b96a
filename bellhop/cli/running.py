"""The Bellhop that runs here, started by `bellhop up` or by `docker compose up`, and its admin key."""

import fcntl
import shutil
import subprocess
from pathlib import Path

from bellhop.cli.secrets import read_admin_key

COMPOSE_FILE = Path(__file__).parents[2] / "compose.yaml"
KEY_FILE = "/run/secrets/bellhop/bellhop_admin_key"


def find_admin_key(home: Path) -> str:
    """Return the key of whichever runs; where neither does, the one that `bellhop up` made under `home`.

    Raises:
        CannotRun: there is none.
    """
    if not _up_runs(home) and (key := _key_of_containers()) is not None:
        return key
    return read_admin_key(home)


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


def _key_of_containers() -> str | None:
    docker = shutil.which("docker")
    if docker is None or not COMPOSE_FILE.exists():
        return None
    command = [docker, "compose", "-f", str(COMPOSE_FILE), "exec", "-T", "gateway", "cat", KEY_FILE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
