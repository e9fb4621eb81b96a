"""Settings of `.env` and secrets that a user hands over do what docs/operations.md says, on a running system."""

import json

import pytest

from tests.compose.system import System
from tests.compose.test_system import stream_token
from tests.services.notifier_support import browser

RELAY = """
from services.mailer.settings import MailerSettings
(relay,) = MailerSettings.load().all_relays
print(relay.host, relay.port, relay.tls.value, relay.username, relay.password.get_secret_value())
"""


@pytest.fixture(scope="module", autouse=True)
def started(system: System) -> None:
    """Everything is up."""
    system.up()


def test_a_relay_with_a_password(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host, login and a secret are all that a relay needs: STARTTLS on port 587; the password is in no environment."""
    monkeypatch.setitem(system.environment, "BELLHOP_SMTP_HOST", "smtp.example.com")
    monkeypatch.setitem(system.environment, "BELLHOP_SMTP_USERNAME", "bellhop")
    system.shell("printf %s hunter2secret | docker compose run --rm -T --no-deps secrets set mailer smtp_password")
    try:
        one_of_it = ["run", "--rm", "--no-deps", "-T", "mailer"]
        assert system.compose(*one_of_it, "python", "-c", RELAY).split() == [
            "smtp.example.com",
            "587",
            "starttls",
            "bellhop",
            "hunter2secret",
        ]
        assert "hunter2secret" not in system.compose("config") + system.compose(*one_of_it, "env")
    finally:
        system.compose("run", "--rm", "-T", "--no-deps", "secrets", "unset", "mailer", "smtp_password")


async def test_further_live_types(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BELLHOP_LIVE_TYPES` and `docker compose up --wait`, nothing else: events of that type are shown."""
    monkeypatch.setitem(system.environment, "BELLHOP_LIVE_TYPES", "order.paid=orders:{subject}")
    system.up()
    event = {"specversion": "1.0", "id": "order-1", "source": "/shop", "type": "order.paid", "subject": "ada"}
    async with browser(system.notifier_url, await stream_token(system, "orders:ada")) as page:
        assert (await page.read(1))[0]["type"] == "ready"
        async with system.client() as gateway:
            headers = {"Content-Type": "application/cloudevents+json"}
            answer = await gateway.post("/v1/events", content=json.dumps(event | {"data": {}}), headers=headers)
            assert answer.status_code == 202, answer.text
        (shown,) = await page.read(1)
    assert (shown["type"], shown["subject"]) == ("order.paid", "ada")


async def test_a_wrong_setting_is_named(system: System) -> None:
    """The service ends with a sentence that names the variable."""
    variables = ["-e", "BELLHOP_SMTP_HOST=smtp.example.com", "-e", "BELLHOP_SMTP_USERNAME=bellhop"]
    with pytest.raises(AssertionError, match=r"BELLHOP_SMTP_[A-Z_,… ]*: "):
        system.compose("run", "--rm", "--no-deps", "-T", *variables, "mailer")
