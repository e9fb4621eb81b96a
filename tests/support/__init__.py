"""What tests share: a real broker, real databases, a real SMTP server, and waiting without sleeping."""

from tests.support.broker import Broker, Vhost
from tests.support.smtp import SmtpServer
from tests.support.waiting import wait_until

__all__ = ["Broker", "SmtpServer", "Vhost", "wait_until"]
