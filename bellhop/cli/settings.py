"""The settings of `bellhop up`, from `BELLHOP_…` variables. Services have their own settings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, SettingsConfigDict

from bellhop import catalog
from bellhop.cli.errors import CannotRun
from bellhop.local.node import Ports

if TYPE_CHECKING:
    _ServicePorts = BaseSettings
else:
    _fields: dict[str, Any] = {f"{one.name}_port": (int, Field(one.port, ge=1, le=65535)) for one in catalog.SERVICES}
    _ServicePorts = create_model("_ServicePorts", __base__=BaseSettings, **_fields)


class UpSettings(_ServicePorts):
    """Every port can be changed; each variable is `BELLHOP_` and the name in capitals."""

    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore", frozen=True)

    home: Path = Field(Path(".bellhop"), description="databases, secrets and the private broker")
    amqp_url: SecretStr | None = Field(None, description="use this broker instead of a private node")
    management_url: SecretStr | None = Field(
        None, description="http://user:password@host:15672 of that broker; with it the topology is applied"
    )
    smtp_host: str | None = Field(None, description="send mail through this relay instead of the development mailbox")

    public_url: str | None = Field(None, description="where people reach the gateway, if not at its port here")
    notifier_url: str | None = Field(None, description="where browsers reach the notifier, if not at its port here")

    mailbox_smtp_port: int = Field(1025, ge=1, le=65535)
    mailbox_http_port: int = Field(8025, ge=1, le=65535)
    # Not RabbitMQ's own numbers: a broker of the system may run beside ours.
    node_amqp_port: int = Field(5673, ge=1, le=65535)
    node_management_port: int = Field(15673, ge=1, le=65535)
    node_prometheus_port: int = Field(15693, ge=1, le=65535)
    node_distribution_port: int = Field(25673, ge=1, le=65535)
    node_epmd_port: int = Field(4370, ge=1, le=65535)

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raise `CannotRun` with one sentence for each wrong variable."""
        try:
            return cls()
        except ValidationError as error:
            sentences = [
                f"BELLHOP_{'_'.join(map(str, problem['loc'])).upper()}: {problem['msg']}."
                for problem in error.errors(include_input=False, include_url=False)
            ]
            raise CannotRun("\n".join(sentences)) from None

    def port(self, service: str) -> int:
        """Return the port of a service: for the gateway, BELLHOP_GATEWAY_PORT."""
        port: int = getattr(self, f"{service}_port")
        return port

    @property
    def node_ports(self) -> Ports:
        """The ports of the private node."""
        return Ports(
            amqp=self.node_amqp_port,
            management=self.node_management_port,
            prometheus=self.node_prometheus_port,
            distribution=self.node_distribution_port,
            epmd=self.node_epmd_port,
        )


def inherited() -> dict[str, str]:
    """Return the environment for services: that of this process, without variables that differ between services."""
    ours = {"BELLHOP_PORT", "BELLHOP_AMQP_URL", "BELLHOP_DATABASE_URL", "BELLHOP_MANAGEMENT_URL", "BELLHOP_SECRETS_DIR"}
    return {name: value for name, value in os.environ.items() if name not in ours}
