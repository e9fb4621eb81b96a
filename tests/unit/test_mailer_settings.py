"""What the mailer's settings become, and what they refuse."""

import pytest
from pydantic import ValidationError

from services.mailer.message import Mail
from services.mailer.relays.settings import Tls
from services.mailer.relays.transport import Outgoing
from services.mailer.settings import MailerSettings
from tests.services.mailer_support import mailer_settings


def test_a_domain_has_one_spelling() -> None:
    """What a server says of a domain is asked for under the name under which it was learnt, as the settings name it."""
    limits = mailer_settings(25, domain_limits={"Bücher.example": "5/s", "*": "50/s"}).domain_limits
    to = "ada@xn--bcher-kva.example"
    mail = Outgoing("hello@bellhop.example", to, b"", Mail(to, "x", "<1@x>"), lambda: None)
    assert set(limits) == {mail.domain, "*"}


def test_without_a_relay_the_development_mailbox_takes_the_mail() -> None:
    """In clear and without a login; a relay that is set takes its place, with STARTTLS on the port of submission."""
    (mailbox,) = mailer_settings(25, smtp_host=None, development_relay="mailpit:1025").all_relays
    (relay,) = MailerSettings.model_validate(
        {
            "amqp_url": "amqp://localhost/",
            "database_url": "sqlite+aiosqlite://",
            "mail_from": "a@b.example",
            "smtp_host": "smtp.example.com",
            "development_relay": "mailpit:1025",
        }
    ).all_relays
    assert (mailbox.host, mailbox.port, mailbox.tls) == ("mailpit", 1025, Tls.NONE)
    assert (relay.host, relay.port, relay.tls) == ("smtp.example.com", 587, Tls.STARTTLS)


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"smtp_host": None}, "BELLHOP_SMTP_HOST"),
        ({"smtp_username": "bellhop"}, "BELLHOP_SMTP_"),
        ({"smtp_host": "smtp.example.com", "smtp_username": "b", "smtp_password": "p"}, "BELLHOP_SMTP_"),
    ],
)
def test_an_error_of_several_settings_names_the_variables(changes: dict[str, object], variable: str) -> None:
    """An operator reads which variable to change."""
    with pytest.raises(ValidationError, match=variable):
        mailer_settings(25, **changes)
