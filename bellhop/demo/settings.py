"""Addresses and key of the system that the demo and `bellhop keys` use."""

from typing import Self

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from bellhop.cli.addresses import Addresses
from bellhop.cli.settings import UpSettings
from bellhop.local.checkout import check_system, find


class DemoSettings(BaseSettings):
    """The variable is `BELLHOP_` and the name in capitals; by default, the system that runs on this machine."""

    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore", frozen=True)

    url: str = Field(description="the gateway")
    admin_key: SecretStr = Field(description="its admin key; else that of the system that runs here")
    notifier_url: str | None = Field(None, description="the notifier, where it is not where the gateway says it is")
    mailbox_url: str = Field(description="the development mailbox, or Mailpit")

    @classmethod
    def load(cls) -> Self:
        """Read the environment, and look for a running system to complete it.

        Raises:
            CannotRun: no system runs here, or the key that was found is not that of the system at the URL.
        """
        given, local = _Given(), UpSettings.load()
        values = given.model_dump(exclude_none=True)
        if given.url is not None and given.admin_key is not None:
            return cls.model_validate({"mailbox_url": Addresses.of(local).mailbox} | values)
        found = find(local)
        values = {"url": found.url, "mailbox_url": found.mailbox_url, "admin_key": found.admin_key} | values
        settings = cls.model_validate(values)
        # The variables and the running system may be two systems: do not send the key of one to the other.
        check_system(settings.url, settings.admin_key.get_secret_value())
        return settings


class _Given(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BELLHOP_", extra="ignore")

    url: str | None = None
    admin_key: SecretStr | None = None
    notifier_url: str | None = None
    mailbox_url: str | None = None
