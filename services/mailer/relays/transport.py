"""What every way out has in common: one call that takes a mail and says what became of it.

Smtp       an SMTP server that takes our mail (smtp.py)
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
    """No mail can go out this way at the moment, whatever mail it is; certainly nothing was sent."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One mail, ready to go."""

    sender: str
    """The address in MAIL FROM and From:."""
    recipient: str
    message: bytes
    """As it goes over an SMTP connection, dots not doubled."""
    mail: Mail
    """The same in its parts, for relays that want those."""
    check: Callable[[], None]
    """Called at the last moment before anything is sent; it may raise, and then nothing is."""

    @property
    def domain(self) -> str:
        """Return the recipient's domain as DNS has it: one spelling for limits, pauses and breakers."""
        return domain_of(self.recipient)


class Transport(Protocol):
    """One way out. How many mails may be on it at once is its caller's business."""

    @property
    def where(self) -> str:
        """Return what to call it in a sentence, like host:port."""

    async def send(self, mail: Outgoing) -> Verdict:
        """Send one mail and return what became of it.

        Raises:
            RelayUnavailable: it was not sent, and not for its own fault.
        """

    async def probe(self) -> None:
        """See whether mail could go out, without sending any.

        Raises:
            RelayUnavailable: it could not.
        """

    def sweep(self) -> None:
        """Close what was not used for a while."""

    async def close(self) -> None:
        """Close everything that carries no mail."""
