"""Where the demo finds the system that it drives."""

from typing import Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bellhop.cli.ports import LOOPBACK
from bellhop.cli.running import find_admin_key
from bellhop.cli.settings import UpSettings


class DemoSettings(BaseSettings):
    """Each variable is `BELLHOP_` and the name in capitals; without any, it is what runs here."""

    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore", frozen=True)

    url: str = Field(description="the gateway")
    admin_key: SecretStr = Field(description="its admin key; else that of the system that runs here")
    notifier_url: str | None = Field(None, description="the notifier, where it is not where the gateway says it is")
    mailbox_url: str = Field(description="the development mailbox, or Mailpit")

    @classmethod
    def load(cls) -> Self:
        """Read the environment; raises `CannotRun` where there is no key."""
        local = UpSettings.load()
        # What the environment says wins over what is guessed here.
        defaults = {
            "url": f"http://{LOOPBACK}:{local.gateway_port}",
            "mailbox_url": f"http://{LOOPBACK}:{local.mailbox_http_port}",
        }
        given = _Given()
        key = given.admin_key or SecretStr(find_admin_key(local.home))
        return cls.model_validate(defaults | given.model_dump(exclude_none=True) | {"admin_key": key})


class _Given(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore")

    url: str | None = None
    admin_key: SecretStr | None = None
    notifier_url: str | None = None
    mailbox_url: str | None = None
