"""The parts of the mailer that its handlers, jobs and routes use."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT, RetryPolicy
from bellhop.contracts.identity import MAILER
from bellhop.contracts.kinds import MAIL
from bellhop.http import internal_client
from bellhop.observe.logs import get_logger
from bellhop.service import Base
from bellhop.sql.database import DatabaseUnavailable
from bellhop.tasks.inbox import Inbox
from bellhop.tasks.outcomes import Reporter
from bellhop.tasks.send_rate import SendRate
from bellhop.tasks.worker import Worker
from bellhop.web.peer import Peer, token_authenticator
from services.mailer import metrics
from services.mailer.attachments import Attachments
from services.mailer.compose import Composer
from services.mailer.message import from_header
from services.mailer.relays.pool import Relays
from services.mailer.rendering import Templates
from services.mailer.settings import MailerSettings
from services.mailer.suppressions import Suppressions
from services.mailer.tables import INBOX, LIMITS

GATEWAY_SECONDS = 30.0
"""Timeout of requests to the gateway; an answer may be an attachment of several megabytes."""

log = get_logger(__name__)


@dataclass(slots=True)
class Mailer:
    """Everything that is open while the mailer runs."""

    settings: MailerSettings
    templates: Templates
    composer: Composer
    worker: Worker
    send_rate: SendRate
    relays: Relays
    publisher: Publisher
    suppressions: Suppressions
    stopping: asyncio.Event
    policy: RetryPolicy = DEFAULT
    max_waiting_in_memory: int = 40
    """Maximum number of mails that wait in memory for a rate limit; the others wait in a retry queue."""
    from_line: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.from_line = from_header(self.settings.mail_from_name, self.settings.mail_from)

    @property
    def connections(self) -> int:
        """Return the maximum number of connections to relays."""
        return sum(relay.connections for relay in self.settings.all_relays)


@asynccontextmanager
async def open_mailer(base: Base[MailerSettings], templates: Templates) -> AsyncIterator[Mailer]:
    """Open the mailer; on exit, release its claims for other replicas."""
    settings = base.settings
    key = settings.service_key.get_secret_value() if settings.service_key else None
    relays = Relays(settings.all_relays, settings.domain)
    metrics.CONNECTIONS.set_function(lambda: relays.busy)
    send_rate = SendRate(
        base.database, LIMITS, settings.domain_limits, settings.sender_limits,
        lowered=lambda kind: metrics.SLOWED.labels(kind).inc(),
    )  # fmt: skip
    for relay in settings.all_relays:
        send_rate.add_relay(relay.limit, relay.rate)
    # The instance alone is not unique: a container that was killed comes back with its old host name and process id.
    inbox = Inbox(base.database, INBOX, f"{settings.instance}/{secrets.token_hex(8)}")
    reporter = Reporter(
        base.publisher, MAIL, MAILER, base.stopping,
        reported=lambda lane, state: metrics.OUTCOMES.labels(lane, state).inc(),
    )  # fmt: skip
    worker = Worker(inbox, reporter, base.stopping, metrics.AGAIN.inc)
    async with internal_client() as http:
        gateway = None
        if key is not None:
            gateway = Peer(
                "gateway", settings.gateway_url, key, http, subject="mailer", timeout_seconds=GATEWAY_SECONDS
            )
            base.app.state.authenticate = token_authenticator(key, "mailer")
        attachments = Attachments(gateway, settings.attachments_folder)
        mailer = Mailer(
            settings=settings,
            templates=templates,
            composer=Composer(settings, templates, attachments),
            worker=worker,
            send_rate=send_rate,
            relays=relays,
            publisher=base.publisher,
            suppressions=Suppressions(gateway),
            stopping=base.stopping,
        )
        base.app.state.mailer = mailer
        try:
            yield mailer
        finally:
            await relays.close()
            await send_rate.close()
            await _release_claims(inbox)


async def _release_claims(inbox: Inbox) -> None:
    try:
        await inbox.close()
    except DatabaseUnavailable as error:
        log.warning("could not release our claims; other replicas wait for them to expire", reason=str(error))
