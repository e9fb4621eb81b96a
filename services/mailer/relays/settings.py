"""The settings of the relays: JSON or TOML, in a variable or a file.

[[relay]]
name = "main"
host = "smtp.example.com"
username = "bellhop"
password = "…"
rate = "50/s"

[[relay]]
kind = "sendgrid"
name = "spare"
priority = 2
api_key = "…"
"""

import json
import tomllib
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from bellhop.contracts.base import Name
from bellhop.tasks.rates import Rate


class Tls(StrEnum):
    """How the connection to the relay is protected. There is no fallback from one to another."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


class _Relay(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    priority: int = Field(1, ge=1, description="relays with the lowest number are used while any of them works")
    weight: float = Field(1.0, gt=0, description="share of the mails among relays of one priority")
    rate: Rate | None = Field(None, description="maximum rate of mails, like 50/s or 10000/h, of all replicas together")
    connections: int = Field(20, ge=1, le=1000, description="maximum number of connections, per process")
    timeout: float = Field(60.0, gt=0, description="seconds for connecting and for each answer")

    @property
    def limit(self) -> str:
        """Return the name of this relay's limit."""
        return f"relay:{self.name}"


class SmtpRelay(_Relay):
    """A relay that speaks SMTP."""

    kind: Literal["smtp"] = "smtp"
    host: str = Field(min_length=1)
    port: int = Field(587, ge=1, le=65535)
    tls: Tls = Tls.STARTTLS
    ca_file: Path | None = None
    username: str | None = None
    password: SecretStr | None = None
    mails_per_connection: int = Field(1000, ge=1)
    idle_seconds: float = Field(30.0, gt=0)
    # RFC 5321, 4.5.3.2.6: a client that waits less than 10 minutes after the final dot causes duplicates.
    data_timeout: float = Field(600.0, gt=0)

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        if (self.username is None) != (self.password is None):
            raise ValueError("give both USERNAME and PASSWORD for the relay, or neither; the password is a secret file")
        if self.username is not None and self.tls is Tls.NONE and not _is_loopback(self.host):
            raise ValueError("TLS none would send the password in clear over the network: use starttls or tls")
        return self


class SendGridRelay(_Relay):
    """SendGrid's HTTP API, version 3."""

    kind: Literal["sendgrid"]
    api_key: SecretStr
    url: str = Field("https://api.sendgrid.com", description="https://api.eu.sendgrid.com for the European Union")

    @model_validator(mode="after")
    def _no_key_in_clear(self) -> Self:
        parts = urlsplit(self.url)
        if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
            raise ValueError("url must begin with https://: http would send the API key in clear over the network")
        return self


AnyRelay = Annotated[SmtpRelay | SendGridRelay, Field(discriminator="kind")]


def read_relays(value: object) -> object:
    """Return the list in a variable or file: JSON, TOML with [[relay]] tables, or the path of such a file."""
    found = _text(value) if isinstance(value, str) else value
    if not isinstance(found, list):
        raise ValueError("must be a list of relays")
    return [{"kind": "smtp"} | one if isinstance(one, dict) else one for one in found]


def _text(value: str) -> Any:
    text = value.strip()
    if "\n" not in text and not text.startswith("["):
        try:
            text = Path(text).read_text("utf-8").strip()
        except OSError as error:
            raise ValueError(f"is neither JSON nor a file that can be read: {error}") from None
    return _parse(text)


def _parse(text: str) -> Any:
    try:
        if not text.startswith("[["):
            return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return tomllib.loads(text).get("relay")
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"is neither JSON nor TOML: {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
