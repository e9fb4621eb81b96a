"""The text messages: takes them off their queue, hands them to a provider."""

from collections.abc import Sequence

from bellhop.service import Queue, Service

from . import handlers
from .parts import Sms, open_sms
from .settings import SmsSettings


def queues(_sms: Sms) -> Sequence[Queue[Sms]]:
    """Return what the service consumes."""
    return [
        Queue("sms.requests", handlers.send),
    ]


SERVICE = Service("sms", SmsSettings, open_sms, queues=queues)
