"""The settings of the mailer, from `BELLHOP_…` variables or secret files."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from bellhop.catalog import PORTS
from bellhop.contracts.addresses import Address, domain_label
from bellhop.contracts.base import one_line
from bellhop.settings import ServiceSettings
from bellhop.tasks.rates import Rate
from services.mailer.relays.settings import AnyRelay, SmtpRelay, Tls, read_relays

TEMPLATES = Path(__file__).parent / "templates"


class MailerSettings(ServiceSettings):
    """The settings of all services, and those of the mailer."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(PORTS["mailer"], ge=0, le=65535, description="port to listen on for HTTP")

    relays: Annotated[list[AnyRelay], NoDecode, BeforeValidator(read_relays)] = Field(
        default_factory=list, description="several relays, as JSON, TOML, or the path of such a file; see docs/mail.md"
    )
    smtp_host: str | None = Field(None, min_length=1, description="host of the relay, if there is only one")
    smtp_port: int = Field(587, ge=1, le=65535, description="port of that relay")
    smtp_tls: Tls = Field(Tls.STARTTLS, description="none, starttls (required, no fallback) or tls (from the start)")
    smtp_ca_file: Path | None = Field(
        None, description="PEM file with the CA of the relay; without it, the system's CAs"
    )
    smtp_username: str | None = Field(None, description="login at the relay; needs a password")
    smtp_password: SecretStr | None = Field(None, description="password of that login")
    development_relay: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}$",
        description="host:port of a development mailbox that receives all mail, without TLS, while no relay is set",
    )
    smtp_connections: int = Field(
        20, ge=1, le=1000, description="maximum number of connections to the relay, for each process"
    )
    smtp_mails_per_connection: int = Field(
        1000, ge=1, description="number of mails after which a connection is replaced"
    )
    smtp_idle_seconds: float = Field(30.0, gt=0, description="seconds after which an unused connection is closed")
    smtp_timeout: float = Field(60.0, gt=0, description="seconds for connecting and for each command")
    # RFC 5321, 4.5.3.2.6: a client that waits less than 10 minutes after the final dot causes duplicates.
    smtp_data_timeout: float = Field(600.0, gt=0, description="seconds to wait for the reply to the final dot")

    mail_from: Address = Field(description="address in From: and MAIL FROM; clients cannot change it")
    mail_from_name: Annotated[str, AfterValidator(one_line)] = Field(
        "", max_length=200, description="name of the sender, before the address in From:"
    )
    mail_domain: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9.-]+$",
        description="domain in Message-ID and EHLO; without it, the domain of mail_from",
    )
    domain_limits: dict[str, Rate] = Field(
        default_factory=dict, description='maximum rate of mails to a domain: {"gmail.com": "20/s", "*": "50/s"}'
    )
    sender_limits: dict[str, Rate] = Field(
        default_factory=dict,
        description='maximum rate of mails of an API key, by its name: {"shop": "100/s", "*": "20/s"}',
    )
    service_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="key shared with the gateway, for template previews and uploaded attachments; see docs/mail.md",
    )
    gateway_url: str = Field("http://127.0.0.1:8000", description="URL of the gateway, for uploaded attachments")
    attachments_folder: Path | None = Field(None, description="folder in which fetched attachments are cached")
    templates: Path = Field(TEMPLATES, description="folder of the template files")

    @field_validator("domain_limits")
    @classmethod
    def _domains_to_dns_form(cls, value: dict[str, Rate]) -> dict[str, Rate]:
        return {domain if domain == "*" else domain_label(domain): rate for domain, rate in value.items()}

    @property
    def domain(self) -> str:
        """Return the domain in Message-ID and EHLO."""
        return self.mail_domain or self.mail_from.rpartition("@")[2]

    @property
    def all_relays(self) -> list[AnyRelay]:
        """Return the relays of `relays`, or else the one relay of the settings `smtp_…`."""
        if self.relays:
            return self.relays
        host, port, tls = self.smtp_host, self.smtp_port, self.smtp_tls
        if host is None:
            host, _, development_port = (self.development_relay or "").partition(":")
            port, tls = int(development_port), Tls.NONE
        one = SmtpRelay(
            name=f"{host}:{port}",
            host=host,
            port=port,
            tls=tls,
            ca_file=self.smtp_ca_file,
            username=self.smtp_username,
            password=self.smtp_password,
            connections=self.smtp_connections,
            mails_per_connection=self.smtp_mails_per_connection,
            idle_seconds=self.smtp_idle_seconds,
            timeout=self.smtp_timeout,
            data_timeout=self.smtp_data_timeout,
        )
        return [one]

    @model_validator(mode="after")
    def _relays_are_usable(self) -> Self:
        if not self.relays and self.smtp_host is None and self.development_relay is None:
            raise ValueError("Set BELLHOP_SMTP_HOST to the relay that takes our mail, or BELLHOP_RELAYS to several")
        try:
            names = [relay.name for relay in self.all_relays]
        except ValidationError as error:  # in the variables BELLHOP_SMTP_…
            problem = error.errors(include_input=False, include_url=False)[0]
            text = problem["msg"].removeprefix("Value error, ")
            raise ValueError(
                f"BELLHOP_SMTP_{'_'.join(map(str, problem['loc'])).upper() or 'HOST, …'}: {text}"
            ) from None
        if len(set(names)) != len(names):
            raise ValueError("BELLHOP_RELAYS: every relay needs a name of its own")
        return self
