"""The tests disturb no Bellhop that runs on this machine, and none disturbs them."""

import os
import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from pydantic_settings import BaseSettings

from bellhop.cli.settings import UpSettings
from services.gateway.settings import Settings as GatewaySettings
from services.leaderboard.settings import LeaderboardSettings
from services.mailer.settings import MailerSettings
from services.notifier.settings import NotifierSettings

REQUIRED = {
    "amqp_url": "amqp://nobody@127.0.0.1:1/",
    "database_url": "sqlite+aiosqlite://",
    "token_key": "k" * 40,
    "admin_key": "bh_none",
    "smtp_host": "127.0.0.1",
    "mail_from": "hello@bellhop.example",
}


@pytest.mark.parametrize("kind", [GatewaySettings, LeaderboardSettings, MailerSettings, NotifierSettings])
def test_no_address_that_a_test_leaves_out_is_a_running_system_s(kind: type[BaseSettings]) -> None:
    """Each setting that is a URL leads nowhere, and a service of a test listens on a free port."""
    given = {name: value for name, value in REQUIRED.items() if name in kind.model_fields}
    values = kind.model_validate(given).model_dump()
    ports = {field.default for name, field in UpSettings.model_fields.items() if name.endswith("_port")}
    reached = {
        name: urlsplit(value).port for name, value in values.items() if name.endswith("_url") and isinstance(value, str)
    }
    assert not ports & set(reached.values()), reached
    assert values["port"] == 0


def test_what_a_process_compiled_is_kept_for_the_next() -> None:
    """A shell may forbid bytecode on disk; the tests start hundreds of processes, each of a thousand modules."""
    assert not sys.dont_write_bytecode
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ


def test_a_unit_test_opens_no_port_and_starts_no_process() -> None:
    """Where it belongs is in the error."""
    with socket.socket() as one, pytest.raises(AssertionError, match="tests/services"):
        one.bind(("127.0.0.1", 0))
    with socket.socket() as one, pytest.raises(AssertionError, match="tests/services"):
        one.connect(("127.0.0.1", 1))
    with pytest.raises(AssertionError, match="tests/services"):
        subprocess.run([sys.executable, "--version"])
