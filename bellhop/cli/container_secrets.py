"""The secrets of the composed system: `python -m bellhop.cli.container_secrets`, the first container that runs.

They are created one time and stored in a volume that only this container mounts. Each reader has its own volume, to
which its secrets are written:

    kept/                                        the stored secrets, in the layout of `secrets.py`
    kept/given/SERVICE/                          secrets of the operator: a relay's password, a CA, a broker's URL
    SERVICE/                                     bellhop_…, one file a setting (`BELLHOP_SECRETS_DIR`)
    rabbitmq/                                    definitions.json (hashes, no password), erlang-cookie
    topology/                                    management-url, with the administrator's password
    postgres/                                    password, and the password of each role
    grafana/                                     password

    docker compose run --rm secrets mailer link-key               renew the secrets that are named
    docker compose run --rm -T secrets set mailer smtp_password   store the secret on standard input
    docker compose run --rm secrets unset mailer smtp_password    delete it

A second run writes the same secrets. `docker compose run --rm secrets mailer` first makes new ones for `mailer`; any
user of RabbitMQ, `admin-key`, `token-key`, `link-key`, `postgres`, `grafana` and `erlang-cookie` can be named.
docs/operations.md describes what to do afterwards.
"""

import base64
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings, SettingsConfigDict

from bellhop import catalog
from bellhop.amqp import topology
from bellhop.cli import secrets as stored
from bellhop.cli.errors import CannotRun
from bellhop.local.node import VHOST
from bellhop.local.ports import LOOPBACK

ROOT = Path("/secrets")
GIVEN_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z]+)?")


class PublishedPorts(BaseSettings):
    """Ports of this machine that compose.yaml publishes, for the lines that are shown to the user."""

    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore", frozen=True)

    gateway_port: int = catalog.PORTS["gateway"]
    rabbitmq_port: int = 15672
    grafana_port: int = 3000


def write_all(root: Path, renewed: list[str], ports: PublishedPorts | None = None) -> list[str]:
    """Delete the secrets in `renewed`, make those that are missing under `root`, and write the files of all readers.

    Return the lines with URLs and logins for the user.

    Raises:
        CannotRun: `renewed` has an unknown name.
    """
    kept = root / "kept"
    stored.load_or_create(
        kept
    )  # before anything is renewed: the first link keys contain the token key, which signed older links
    _renew(kept, renewed)
    ours = stored.load_or_create(kept)
    roles = ("postgres", *catalog.WITH_TABLES)
    databases = {role: stored.read_or_create(kept / "postgres" / role, stored.new_password) for role in roles}
    for entry in catalog.SERVICES:
        service, password = entry.name, ours.passwords[entry.name]
        values = {"amqp_url": f"amqp://{service}:{password}@rabbitmq:5672/{VHOST}"}
        if entry.tables:
            values["database_url"] = f"postgresql+asyncpg://{service}:{databases[service]}@postgres:5432/{service}"
        values |= ours.of_service(entry, f"http://{service}:{password}@rabbitmq:15672")
        values |= _given(kept / "given" / service)
        for file in (root / service).glob("*"):
            if file.name not in map(_file_name, values):
                file.unlink()
        for name, value in values.items():
            stored.write(root / service / _file_name(name), value)
    _write_definitions(root / "rabbitmq" / "definitions.json", ours.passwords)
    # Only container_topology.py needs the rights of an administrator.
    stored.write(root / "topology" / "management-url", f"http://deploy:{ours.passwords['deploy']}@rabbitmq:15672")
    cookie = stored.read_or_create(kept / "erlang-cookie", lambda: secrets.token_hex(32))
    stored.write_readable(root / "rabbitmq" / "erlang-cookie", cookie)
    for role, password in databases.items():
        stored.write_readable(root / "postgres" / ("password" if role == "postgres" else role), password)
    grafana = stored.read_or_create(kept / "grafana", stored.new_password)
    stored.write_readable(root / "grafana" / "password", grafana)
    ports = ports or PublishedPorts()
    rows = [
        ("gateway", ports.gateway_port, f"admin key {ours.admin_key}"),
        ("RabbitMQ", ports.rabbitmq_port, f"user deploy, password {ours.passwords['deploy']}"),
        ("Grafana", ports.grafana_port, f"user admin, password {grafana} (with --profile monitoring)"),
    ]
    return [f"{name:<16}http://{LOOPBACK}:{port:<8}{login}" for name, port, login in rows]


def store(root: Path, service: str, name: str, value: str) -> None:
    """Store a secret of the operator: a setting such as `smtp_password`, or a file such as `smtp_ca.pem`.

    An empty value deletes it.

    Raises:
        CannotRun: there is no such service, or the name cannot be that of a setting.
    """
    if service not in catalog.NAMES:
        raise CannotRun(f"There is no service {service!r}: name one of {', '.join(catalog.NAMES)}.")
    if GIVEN_NAME.fullmatch(name) is None:
        raise CannotRun(f"{name!r} names no setting: write it like smtp_password, or a file like smtp_ca.pem.")
    file = root / "kept" / "given" / service / name
    if value.strip():
        stored.write(file, value.strip())
    else:
        file.unlink(missing_ok=True)


def _given(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text().strip() for file in sorted(folder.glob("*"))}


def _file_name(name: str) -> str:
    return name if "." in name else f"bellhop_{name}"


def _renew(kept: Path, renewed: list[str]) -> None:
    files: dict[str, list[Path]] = {
        "admin-key": [kept / stored.ADMIN_KEY],
        "token-key": [kept / stored.TOKEN_KEY],
        "link-key": [],
        "postgres": [kept / "postgres" / "postgres"],
        "grafana": [kept / "grafana"],
        "erlang-cookie": [kept / "erlang-cookie"],
    }
    for user in (*topology.RIGHTS, "deploy"):
        files[user] = [kept / "secrets" / "amqp" / user, kept / "postgres" / user]
    for name in renewed:
        if name not in files:
            raise CannotRun(f"There is no secret {name!r}: name one of {', '.join(files)}.")
    for file in (file for name in renewed for file in files[name]):
        file.unlink(missing_ok=True)
    if "link-key" in renewed:
        stored.renew_link_key(kept)


def _write_definitions(file: Path, passwords: dict[str, str]) -> None:
    """Write the definitions that RabbitMQ loads at boot, with the same bytes as before if nothing changed.

    RabbitMQ skips unchanged definitions, so that changes of an operator on the running broker stay.
    """
    definitions = topology.boot_definitions(passwords, vhost=VHOST)
    try:
        before = {user["name"]: user["password_hash"] for user in json.loads(file.read_text())["users"]}
    except (OSError, ValueError, LookupError):
        before = {}
    for user in definitions["users"]:
        _reuse_hash(user, before.get(user["name"]), passwords[user["name"]])
    stored.write_readable(file, json.dumps(definitions, indent=2))


def _reuse_hash(user: dict[str, Any], before: str | None, password: str) -> None:
    """Use the salt of the former hash if the password is the same, so that the file does not change."""
    if before is not None and topology.password_hash(password, base64.b64decode(before)[:4]) == before:
        user["password_hash"] = before


def main() -> None:
    """Write the secrets, and print URLs and logins for the user."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] in (["set"], ["unset"]):
            if len(arguments) != 3:
                raise CannotRun(f"Write: {arguments[0]} SERVICE NAME, as in: {arguments[0]} mailer smtp_password")
            store(ROOT, arguments[1], arguments[2], sys.stdin.read() if arguments[0] == "set" else "")
            arguments = []
        lines = write_all(ROOT, arguments)
    except CannotRun as error:
        raise SystemExit(f"bellhop: {error}") from None
    print("Every service has its secrets. Yours:", *lines, sep="\n  ")


if __name__ == "__main__":
    main()
