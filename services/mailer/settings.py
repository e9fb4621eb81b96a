"""The settings of the mailer, from `BELLHOP_…` variables or secret files."""

from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from bellhop.contracts.base import one_line
from bellhop.contracts.mail import Address
from bellhop.settings import ServiceSettings

TEMPLATES = Path(__file__).parent / "templates"


class Tls(StrEnum):
    """How the connection to the relay is protected. None of these ever falls back to another."""

    NONE = "none"
    STARTTLS = "starttls"
    TLS = "tls"


class MailerSettings(ServiceSettings):
    """What the mailer needs beyond what all services need."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(8003, ge=0, le=65535, description="port that the HTTP face listens on")

    smtp_host: str = Field(min_length=1, description="the relay (smarthost) that takes our mail")
    smtp_port: int = Field(587, ge=1, le=65535)
    smtp_tls: Tls = Field(Tls.STARTTLS, description="none, starttls (required, never skipped) or tls (from the start)")
    smtp_ca_file: Path | None = Field(None, description="PEM file with the CA of the relay; else the system's CAs")
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    smtp_connections: int = Field(20, ge=1, le=1000, description="connections to the relay at most, per process")
    smtp_mails_per_connection: int = Field(1000, ge=1, description="after so many mails a fresh connection is made")
    smtp_idle_seconds: float = Field(30.0, gt=0, description="an unused connection is closed after this time")
    smtp_timeout: float = Field(60.0, gt=0, description="seconds for connecting and for each command")
    # RFC 5321, 4.5.3.2.6: who gives up sooner than 10 minutes after the final dot makes duplicates.
    smtp_data_timeout: float = Field(600.0, gt=0, description="seconds to wait for the reply to the final dot")

    mail_from: Address = Field(description="address in From: and MAIL FROM; fixed, no client can change it")
    mail_from_name: Annotated[str, AfterValidator(one_line)] = Field("", max_length=200)
    mail_domain: str | None = Field(
        None, pattern=r"^[A-Za-z0-9.-]+$", description="stands in Message-ID and EHLO; else the domain of mail_from"
    )
    templates: Path = Field(TEMPLATES, description="folder of the template files")

    @property
    def domain(self) -> str:
        """Return the name that this sender goes by."""
        return self.mail_domain or self.mail_from.rpartition("@")[2]

    @model_validator(mode="after")
    def _no_password_in_clear(self) -> Self:
        if (self.smtp_username is None) != (self.smtp_password is None):
            raise ValueError("give both BELLHOP_SMTP_USERNAME and BELLHOP_SMTP_PASSWORD, or neither")
        if self.smtp_username is not None and self.smtp_tls is Tls.NONE and not _is_loopback(self.smtp_host):
            raise ValueError(
                "BELLHOP_SMTP_TLS=none would send the password in clear over the network: use starttls or tls"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
