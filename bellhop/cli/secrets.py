"""The secrets of a Bellhop on this machine: created one time under `.bellhop/`, passed to each service as files.

    .bellhop/admin-key                          the key of the operator
    .bellhop/secrets/token-key                  signs stream tokens, the same for all services
    .bellhop/secrets/link-keys                  sign the links in mails: the current key, then earlier ones
    .bellhop/secrets/amqp/<user>                passwords of the private node's users
    .bellhop/secrets/<service>/bellhop_…        what that service reads (`BELLHOP_SECRETS_DIR`), written at each start

Folders have mode 0700 and files 0600.
"""

import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bellhop import catalog
from bellhop.amqp.topology import RIGHTS
from bellhop.cli.errors import CannotRun
from bellhop.web.auth import new_key
from bellhop.web.tokens import service_key

ADMIN_KEY = "admin-key"
TOKEN_KEY = Path("secrets", "token-key")
LINK_KEYS = Path("secrets", "link-keys")
MAX_LINK_KEYS = 10
"""Maximum number of link keys. Links in mails must work for years, so earlier keys are kept."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets that this module creates."""

    admin_key: str = field(repr=False)
    token_key: str = field(repr=False)
    link_keys: str = field(repr=False)
    """Separated by commas; the first one signs, all of them verify."""
    passwords: dict[str, str] = field(repr=False)
    """Of the users of the private node: one user for each service, and `deploy`."""

    def of_service(self, service: catalog.CatalogEntry, management_url: str | None) -> dict[str, str]:
        """Return the secrets of `service` in the catalog, without the URLs of its user and of its database.

        management_url: of the broker, or None if no service gets one.
        """
        made = {
            "token_key": self.token_key,
            "service_key": service_key(self.token_key, service.name),
            "admin_key": self.admin_key,
            "link_keys": self.link_keys,
            "management_url": management_url,
        }
        return {name: value for name in service.secrets if (value := made[name]) is not None}


def load_or_create(home: Path) -> Secrets:
    """Return the secrets under `home`, making those that are missing."""
    token_key = read_or_create(home / TOKEN_KEY, new_signing_key)
    users = home / "secrets" / "amqp"
    return Secrets(
        admin_key=read_or_create(home / ADMIN_KEY, new_key),
        token_key=token_key,
        # In earlier versions the token key signed the links, and links in old mails must stay valid.
        link_keys=read_or_create(home / LINK_KEYS, lambda: f"{new_signing_key()},{token_key}"),
        passwords={user: read_or_create(users / user, new_password) for user in (*RIGHTS, "deploy")},
    )


def renew_link_key(home: Path) -> None:
    """Sign new links with a new key; links that were mailed before stay valid."""
    earlier = load_or_create(home).link_keys.split(",")
    write(home / LINK_KEYS, ",".join([new_signing_key(), *earlier][:MAX_LINK_KEYS]))


def write_service(home: Path, service: str, values: dict[str, str]) -> Path:
    """Write the secrets of one service, one file for each setting, and return the folder for `BELLHOP_SECRETS_DIR`."""
    folder = home / "secrets" / service
    for name, value in values.items():
        write(folder / f"bellhop_{name}", value)
    return folder


def read_admin_key(home: Path) -> str:
    """Return the admin key; raise `CannotRun` if there is none yet."""
    try:
        return (home / ADMIN_KEY).read_text().strip()
    except FileNotFoundError:
        raise CannotRun(
            f"There is no {home / ADMIN_KEY} yet: start Bellhop first ('make up', or 'docker compose up')."
        ) from None
    except OSError as error:
        raise CannotRun(f"{home / ADMIN_KEY} cannot be read ({error.strerror}): it belongs to another user.") from None


def private_folder(folder: Path) -> None:
    """Create `folder`, and missing parent folders, for this user only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def new_signing_key() -> str:
    """Return a key for HMAC signatures."""
    return secrets.token_urlsafe(48)


def new_password() -> str:
    """Return a password for a service; it needs no escaping in a URL."""
    return secrets.token_urlsafe(24)


def read_or_create(file: Path, make: Callable[[], str]) -> str:
    """Return the contents of `file`; if it is missing or empty, first write the value of `make`."""
    try:
        value = file.read_text().strip()
    except FileNotFoundError:
        value = ""
    if not value:
        value = make()
        write(file, value)
    return value


def write(file: Path, value: str) -> None:
    """Write a file for this user only, atomically: an incomplete file after a crash would make the secret unusable."""
    private_folder(file.parent)
    _replace(file, value, 0o600)


def write_readable(file: Path, value: str) -> None:
    """Write a file for a reader with another user id, into an existing folder that only its container mounts."""
    file.parent.chmod(0o755)
    _replace(file, value, 0o444)


def _replace(file: Path, value: str, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=".new-")  # mkstemp: mode 0600
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(descriptor, mode)
        stream.write(value + "\n")
    Path(temporary).replace(file)
