"""The mailer: takes mail tasks off their queues, hands the mail to the relay, reports what became of it."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI

from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.background import Background
from bellhop.contracts.mail import Lane
from bellhop.http import internal_client
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.migrations import migrate
from bellhop.web.health import check
from bellhop.web.server import create_app
from services.mailer import handlers, metrics, reactions
from services.mailer.announcing import REPEAT_SECONDS, announce
from services.mailer.attachments import Attachments
from services.mailer.compose import Composer
from services.mailer.limits import Limits
from services.mailer.relays.pool import Relays
from services.mailer.rendering import BadTemplate, Templates, reaction_types
from services.mailer.routes import authenticator, router
from services.mailer.settings import MailerSettings
from services.mailer.store import Inbox
from services.mailer.suppressions import Suppressions
from services.mailer.work import Mailer, guarded

BEAT_SECONDS = 3.0
FORGET_SECONDS = 3600.0
PREPARE_SECONDS = 3600.0
"""A migration of a large database may take so long."""
ATTACHMENT_SECONDS = 30.0
MAX_PREFETCH = 160
"""Of one lane, whose mails have at most about 1 MiB."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One queue, its handler, and how many deliveries may be in hand."""

    queue: str
    handler: Callable[[Mailer, Delivery], Awaitable[None]]
    prefetch: int


def table(connections: int) -> list[Row]:
    """Return THE table: what the mailer consumes. `connections` to the relay are shared by the lanes (lanes.py).

    A lane has several times as many deliveries in hand as there are connections: while some are on the wire, most
    are being claimed, recorded or reported, each of which waits for a disk. More would be faster still, but whatever
    is in hand when we crash counts as sent, perhaps; and a mail may have a megabyte.
    """
    lanes = min(8 * connections, MAX_PREFETCH)
    return [
        # The first one: the others subscribe when it has caught up, so that no mail goes out before its cancel is read.
        Row("mail.cancel", handlers.cancel_mail, 100),
        Row(Lane.URGENT.queue, handlers.send_mail, lanes),
        Row(Lane.NORMAL.queue, handlers.send_mail, lanes),
        Row(Lane.BULK.queue, handlers.send_mail, lanes),
        Row("mailer.reactions", reactions.react, 50),
    ]


def build(settings: MailerSettings) -> FastAPI:
    """Compose the service.

    Ends the process with a sentence where a template file cannot be used.
    """
    try:
        templates = Templates(settings.templates)
    except BadTemplate as error:
        raise SystemExit(str(error)) from None
    reacts_to = sorted(reaction_types(settings.templates))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = settings.amqp_url.get_secret_value()
        consuming = Connection(url, f"bellhop/mailer/{settings.instance}/consume")
        publishing = Connection(url, f"bellhop/mailer/{settings.instance}/publish")
        database = Database(settings.database_url.get_secret_value())
        relays = Relays(settings.all_relays, settings.domain)
        limits = Limits(database, settings.domain_limits, settings.sender_limits)
        for each in settings.all_relays:
            limits.add_relay(each.limit, each.rate)
        http = internal_client(ATTACHMENT_SECONDS)
        # The name alone would not do: a container that was killed comes back with its old host name and process id.
        inbox = Inbox(database, f"{settings.instance}/{secrets.token_hex(8)}")
        key = settings.service_key.get_secret_value() if settings.service_key else None
        attachments = Attachments(settings.gateway_url, key, http, settings.attachments_folder)
        composer = Composer(settings, templates, attachments)
        suppressions = Suppressions(settings.gateway_url, key, http)
        mailer = Mailer(settings, templates, composer, inbox, limits, relays, Publisher(publishing), suppressions)
        consumers: list[Consumer] = []
        for row in table(sum(each.connections for each in settings.all_relays)):
            handler = guarded(row.handler, mailer)
            first = consumers[0] if consumers else None
            consumers.append(
                Consumer(consuming, mailer.publisher, row.queue, handler, prefetch=row.prefetch, after=first)
            )
        metrics.CONNECTIONS.set_function(lambda: relays.busy)
        background: Background = app.state.background

        async def prepare() -> None:
            # Be known as alive before anything is claimed.
            await migrate(settings.database_url.get_secret_value(), "services.mailer")
            await inbox.beat()
            await limits.refresh()
            for consumer in consumers:
                consumer.start()
            background.every("heartbeat", BEAT_SECONDS, inbox.beat)
            background.every("refreshing the limits", BEAT_SECONDS, limits.refresh)
            background.every("announcing templates", REPEAT_SECONDS, partial(announce, mailer.publisher, reacts_to))
            background.every("closing idle connections", BEAT_SECONDS, relays.sweep)
            background.every(
                "retention", FORGET_SECONDS, partial(_forget, settings, inbox, limits), limit=FORGET_SECONDS
            )

        async def ready() -> dict[str, str]:
            return {
                "broker": publishing.explanation if publishing.explanation != "ok" else consuming.explanation,
                "database": await check(database.ping) if inbox.fresh else "the database takes no heartbeat",
                "queues": _consuming(consumers),
                "relay": relays.trouble or "ok",
            }

        app.state.ready = ready
        app.state.templates = templates
        if key is not None:
            app.state.authenticate = authenticator(key)
        app.state.limits = limits
        await publishing.start()
        await consuming.start()
        background.once("preparation", prepare, limit=PREPARE_SECONDS)
        try:
            yield
        finally:
            mailer.stopping.set()
            relays.give_up()
            await asyncio.gather(*(consumer.stop(settings.shutdown_seconds) for consumer in consumers))
            # Only now: while mails are in hand, our heartbeat must go on.
            await background.stop()
            await relays.close()
            await http.aclose()
            await limits.close()
            await _close(inbox)
            await consuming.close()
            await publishing.close()
            await database.close()

    return create_app("Bellhop mailer", version("bellhop"), lifespan, [router])


async def _forget(settings: MailerSettings, inbox: Inbox, limits: Limits) -> None:
    gone = await inbox.forget(settings.inbox_days)
    await limits.forget()
    if gone:
        log.info("forgot old tasks", tasks=gone)


async def _close(inbox: Inbox) -> None:
    try:
        await inbox.close()
    except DatabaseUnavailable as error:
        log.warning("could not say goodbye; other replicas will wait for our heartbeat to end", reason=str(error))


def _consuming(consumers: list[Consumer]) -> str:
    missing = [consumer.queue for consumer in consumers if not consumer.consuming]
    return f"not consuming from {', '.join(missing)}" if missing else "ok"
