"""What the documentation calls a setting can be set: compose.yaml passes each one on, and no secret."""

from pathlib import Path

import pytest
import yaml
from pydantic import SecretStr

from bellhop.settings import ServiceSettings
from services.gateway.settings import Settings as GatewaySettings
from services.leaderboard.settings import LeaderboardSettings
from services.mailer.settings import MailerSettings
from services.notifier.settings import NotifierSettings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = {
    "gateway": GatewaySettings,
    "mailer": MailerSettings,
    "notifier": NotifierSettings,
    "leaderboard": LeaderboardSettings,
}
SECRETS = {"relays"}
"""No SecretStr, but holds passwords."""
FIXED = {
    "host": "the image listens on every address of its container",
    "port": "and on one port",
    "instance": "each container has a name",
    "attachments_folder": "in the container's own /tmp",
    "templates": "a folder must be mounted as well: compose.override.yaml",
}


def is_secret(settings: type[ServiceSettings], name: str) -> bool:
    return name in SECRETS or SecretStr.__name__ in str(settings.model_fields[name].annotation)


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_reaches_its_container(service: str) -> None:
    """A variable in .env is never ignored silently."""
    settings = SERVICES[service]
    wanted = {f"BELLHOP_{name.upper()}" for name in settings.model_fields if name not in FIXED}
    wanted -= {f"BELLHOP_{name.upper()}" for name in settings.model_fields if is_secret(settings, name)}
    assert wanted - set(COMPOSE["services"][service]["environment"]) == set()


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_in_an_environment(service: str) -> None:
    """`docker inspect` shows it to everybody who may use the engine."""
    settings = SERVICES[service]
    secrets = {f"BELLHOP_{name.upper()}" for name in settings.model_fields if is_secret(settings, name)}
    assert secrets & set(COMPOSE["services"][service]["environment"]) == set()


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_is_described(service: str) -> None:
    """docs/settings.md shows what stands there."""
    fields = SERVICES[service].model_fields.items()
    assert [name for name, field in fields if not field.description] == []
