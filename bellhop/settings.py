"""The settings that all services have; each service's `settings.py` adds its own."""

import os
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, IPvAnyNetwork, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bellhop.amqp.urls import split_urls


class ServiceSettings(BaseSettings):
    """Read from `BELLHOP_…` variables, or from files of the same name in `BELLHOP_SECRETS_DIR`.

    A secret such as the AMQP URL belongs in a file: `$BELLHOP_SECRETS_DIR/bellhop_amqp_url`.
    """

    # compose.yaml passes every variable on, and cannot leave out an empty one.
    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore", frozen=True, env_ignore_empty=True)

    amqp_url: SecretStr = Field(
        description="amqp://user:password@host:port/vhost, or amqps:// for TLS; several nodes of a cluster"
        " separated by commas"
    )
    database_url: SecretStr | None = Field(
        None, description="sqlite+aiosqlite:///file or postgresql+asyncpg://…; not used by a service without tables"
    )
    host: str = Field("127.0.0.1", description="address to listen on for HTTP")
    port: int = Field(ge=0, le=65535, description="port to listen on for HTTP")
    trusted_proxies: Annotated[list[IPvAnyNetwork], NoDecode] = Field(
        default_factory=list,
        description="addresses or networks of proxies whose X-Forwarded-For and -Proto are trusted, separated"
        " by commas",
    )
    log_format: str = Field(
        "console", pattern="^(console|json)$", description="`console` for people, `json` for a log collector"
    )
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="`debug`, `info`, `warning` or `error`"
    )
    instance: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="name of this replica"
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/?#]+/?$",
        description="URL of a collector that accepts traces by OTLP/HTTP, like http://127.0.0.1:4318; without"
        " it, traces are off",
    )
    drain_seconds: float = Field(
        0.0,
        ge=0,
        description="seconds after SIGTERM in which requests are still answered, with /readyz and /healthz at 503;"
        " must be longer than a load balancer needs to detect that. `compose.yaml` sets 5",
    )
    shutdown_seconds: float = Field(
        15.0, gt=0, description="seconds after draining in which work in progress may finish"
    )
    inbox_days: float = Field(
        30.0,
        gt=0,
        description="days that the ids of handled messages are kept; must be longer than any redelivery takes",
    )

    @field_validator("amqp_url")
    @classmethod
    def _amqp(cls, value: SecretStr) -> SecretStr:
        if not all(url.startswith(("amqp://", "amqps://")) for url in split_urls(value.get_secret_value())):
            raise ValueError("must look like amqp://user:password@host:5672/vhost")
        return value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _read_proxies(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @classmethod
    def load(cls) -> Self:
        """Read the settings of this process, or end it with one sentence for each setting that is wrong."""
        folder = os.environ.get("BELLHOP_SECRETS_DIR")
        try:
            # A folder that is not there is no secret; what is missing is named below.
            return cls(_secrets_dir=folder if folder and Path(folder).is_dir() else None)
        except ValidationError as error:
            problems = error.errors(include_input=False, include_url=False)
            raise SystemExit("\n".join(sentence(problem["loc"], problem["msg"]) for problem in problems)) from None


def sentence(place: tuple[int | str, ...], message: str) -> str:
    """Return what is wrong with a setting and where to set it; what concerns several settings names them itself."""
    text = message.removeprefix("Value error, ")
    where = "Set the variable, or a file of that name in lower case in the folder BELLHOP_SECRETS_DIR."
    if not place:
        return f"{text}. {where}"
    name, *rest = map(str, place)
    inside = f" ({'.'.join(rest)})" if rest else ""
    return f"BELLHOP_{name.upper()}{inside}: {text}. {where}"


class TokenSettings(ServiceSettings):
    """Settings of services that sign or verify tokens."""

    token_key: SecretStr = Field(
        min_length=32,
        description="key that signs tokens (HS256); the same for the gateway, the notifier and the leaderboard",
    )


class LiveSettings(TokenSettings):
    """Those of the gateway, which publishes events to the notifier's stream, and of the notifier, which shows them."""

    live_types: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="additional event types to show live, each with its channel: order.placed=orders:{subject},…"
        " `{subject}` and `{type}` are replaced by those of the event. The same for the gateway and the notifier",
    )

    @field_validator("live_types", mode="before")
    @classmethod
    def _read_types(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().partition("=") for pair in value.split(",") if pair.strip()]
        for name, equals, template in pairs:
            if not (name.strip() and equals and template.strip()):
                raise ValueError("must look like order.placed=orders:{subject},order.paid=orders:{subject}")
        return {name.strip(): template.strip() for name, _, template in pairs}

    @field_validator("live_types")
    @classmethod
    def _known_fields(cls, value: dict[str, str]) -> dict[str, str]:
        for template in value.values():
            if set("{}") & set(template.replace("{subject}", "").replace("{type}", "")):
                raise ValueError(f"the channel {template!r} may only use {{subject}} and {{type}}")
        return value
