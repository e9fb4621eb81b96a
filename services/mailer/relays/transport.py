"""The interface of a transport: one call that sends a mail and returns the result.

Smtp       an SMTP server (smtp.py)
SendGrid   SendGrid's HTTP API, v3 (sendgrid.py)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bellhop.contracts.addresses import domain_of
from bellhop.errors import Unavailable
from services.mailer.message import Mail
from services.mailer.relays.replies import Verdict


class RelayUnavailable(Unavailable):
    """No mail can be sent by this relay at the moment; certainly nothing was sent."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One mail, ready to be sent."""

    sender: str
    """The address in MAIL FROM and From:."""
    recipient: str
    message: bytes
    """The bytes of the mail, before dot-stuffing."""
    mail: Mail
    """The same mail in parts, for HTTP APIs."""
    check: Callable[[], None]
    """Called immediately before the mail is sent; if it raises, nothing is sent."""

    @property
    def domain(self) -> str:
        """Return the recipient's domain in its DNS form: one spelling for limits and breakers."""
        return domain_of(self.recipient)


class Transport(Protocol):
    """Sends mail to one relay. The caller limits the number of concurrent mails."""

    @property
    def address(self) -> str:
        """Return host and port, for logs and errors."""

    async def send(self, mail: Outgoing) -> Verdict:
        """Send one mail and return the result.

        Raises:
            RelayUnavailable: nothing was sent, for a reason that is not in the mail.
        """

    async def probe(self) -> None:
        """Check that mail can be sent, without sending any.

        Raises:
            RelayUnavailable: it cannot.
        """

    def sweep(self) -> None:
        """Close idle connections."""

    async def close(self) -> None:
        """Close all connections that are not in use."""
