"""The composition root of the gateway: what there is, and who handles what."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.publisher import Publisher
from bellhop.background import Background
from bellhop.contracts.identity import ADMIN, is_reserved_name
from bellhop.contracts.mail import MAX_ATTACHMENT
from bellhop.contracts.reactions import QUEUE as ANNOUNCEMENTS
from bellhop.http import internal_client
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.group_commit import GroupCommit
from bellhop.sql.migrations import migrate
from bellhop.web.auth import Caller, system_id
from bellhop.web.health import check
from bellhop.web.limits import Limits, Rate
from bellhop.web.problems import problem_response
from bellhop.web.server import create_app
from services.gateway import handlers, metrics
from services.gateway.acceptance.service import Intake, unavailable
from services.gateway.attachments import routes as attachments
from services.gateway.attachments.store import Attachments
from services.gateway.broadcasts import newsletter
from services.gateway.broadcasts import routes as broadcasts
from services.gateway.console import routes as console
from services.gateway.dead_letters import routes as dead_letters
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.events import routes as events
from services.gateway.events.reactions import ReactionTypes
from services.gateway.keys import routes as keys
from services.gateway.keys.store import Keys
from services.gateway.leaderboards import routes as leaderboards
from services.gateway.leaderboards.board_names import BoardNames
from services.gateway.leaderboards.boards import LATER_SECONDS, Boards
from services.gateway.leaderboards.marks import MARK_SECONDS, Marks
from services.gateway.mail import routes as mail
from services.gateway.outbox.delivery import Outgoing
from services.gateway.outbox.publisher import Relay
from services.gateway.outbox.routing import UNROUTED, Routing
from services.gateway.parts import Gateway
from services.gateway.public_pages import routes as public
from services.gateway.settings import Settings
from services.gateway.stream_tokens import routes as streams
from services.gateway.subscribers import routes as subscribers
from services.gateway.suppressions.store import Suppressions
from services.gateway.system import routes as system
from services.gateway.system.retention import ROUND_SECONDS, Retention
from services.gateway.tasks import routes as tasks
from services.gateway.tasks.live import LiveOutcomes
from services.gateway.tasks.overdue import ROUND_SECONDS as STALE_SECONDS
from services.gateway.tasks.overdue import StaleTasks
from services.gateway.tasks.store import Ledger
from services.gateway.tasks.waiters import Waiters
from services.gateway.tasks.withdrawals import Withdrawals
from services.gateway.templates import routes as templates

ROUTERS = (
    mail.router,
    attachments.router,
    templates.router,
    tasks.router,
    events.router,
    streams.router,
    leaderboards.router,
    subscribers.router,
    broadcasts.router,
    public.router,
    dead_letters.router,
    keys.router,
    system.router,
    console.router,
)

KEY_CACHE_SECONDS = 5.0
"""How long a revoked key may still work."""

WITHDRAW_SECONDS = 0.5
ROUTING_SECONDS = 5.0
"""Until an event type that a mailer announced is known to every gateway."""
PREPARE_SECONDS = 3600.0
"""A migration of a large database may take so long."""

log = get_logger(__name__)


def consumers(connection: Connection, publisher: Publisher, gateway: Gateway) -> list[Consumer]:
    """Return the table: queue -> handler."""
    outcome = partial(
        handlers.apply_outcome,
        commits=gateway.commits,
        ledger=gateway.ledger,
        waiters=gateway.waiters,
        live=LiveOutcomes(publisher),
    )
    unrouted = partial(handlers.store_unrouted, commits=gateway.commits, dead_letters=gateway.dead_letters)
    announcement = partial(handlers.note_reactions, commits=gateway.commits, reactions=gateway.reactions)
    dead_letter = partial(
        handlers.store_dead_letter,
        commits=gateway.commits,
        dead_letters=gateway.dead_letters,
        waiters=gateway.waiters,
    )
    return [
        Consumer(connection, publisher, "gateway.outcomes", outcome, prefetch=500),
        # Whatever could not be handled ends here, foreign messages of 16 MiB too.
        Consumer(connection, publisher, "dead-letters", dead_letter, prefetch=8),
        Consumer(connection, publisher, UNROUTED, unrouted, prefetch=20),
        Consumer(connection, publisher, ANNOUNCEMENTS, announcement, prefetch=10),
    ]


def build(settings: Settings) -> FastAPI:
    """Return the gateway's application; its lifespan connects and disconnects everything."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = settings.amqp_url.get_secret_value()
        database = Database(settings.database_url.get_secret_value())
        commits = GroupCommit(database)
        # Two connections: an alarm stops a publishing connection, and outcomes must keep coming in meanwhile.
        publishing = Connection(url, f"bellhop/gateway/{settings.instance}/publish")
        consuming = Connection(url, f"bellhop/gateway/{settings.instance}/consume")
        publisher = Publisher(publishing, window=2000)
        routing = Routing(settings.live_types)
        outgoing = Outgoing(publisher, routing)
        relay = Relay(database, commits, publisher, outgoing)
        metrics.OUTBOX.set_function(lambda: relay.waiting)
        suppressions = Suppressions(database, settings.bounce_days)
        intake = Intake(commits, relay, publisher, outgoing, settings.outbox_limit, suppressions.accept)
        async with internal_client() as http:
            gateway = Gateway(
                settings=settings,
                database=database,
                commits=commits,
                intake=intake,
                ledger=Ledger(database, suppressions.note_bounces),
                keys=Keys(database),
                dead_letters=DeadLetters(database, settings.unrouted_limit),
                attachments=Attachments(
                    database, settings.attachment_days, settings.attachment_quota, settings.attachment_total
                ),
                reactions=ReactionTypes(database, routing),
                boards=Boards(BoardNames(database), settings, http),
                waiters=Waiters(),
                http=http,
                newsletter=newsletter.build(settings, database, suppressions, intake),
            )
            app.state.gateway = gateway
            app.state.authenticate = _Authenticator(gateway.keys).find
            table = consumers(consuming, publisher, gateway)
            app.state.ready = partial(_ready, gateway, publisher, table)

            marks = Marks(database, publisher, http, settings.leaderboard_url)

            async def prepare() -> None:
                await migrate(settings.database_url.get_secret_value(), "services.gateway")
                await gateway.keys.ensure_admin(settings.admin_key.get_secret_value())
                await _warn_of_reserved_names(gateway.keys)
                await gateway.reactions.load()
                for consumer in table:
                    consumer.start()
                relay.start(background)
                gateway.newsletter.feeder.start(background)
                background.every("withdrawals", WITHDRAW_SECONDS, partial(_withdraw, withdrawals, gateway.waiters))
                background.every("routing by templates", ROUTING_SECONDS, gateway.reactions.load)
                background.every("marking scores", MARK_SECONDS, marks.publish)
                background.every("reading the names of boards", LATER_SECONDS, gateway.boards.read_existing)
                stale = StaleTasks(database, gateway.newsletter.maker, relay, settings.republish_minutes * 60)
                background.every("asking for late outcomes", STALE_SECONDS, stale.round)
                background.every("retention", ROUND_SECONDS, Retention(database, settings).round, limit=ROUND_SECONDS)

            withdrawals = Withdrawals(database)
            background: Background = app.state.background
            await publishing.start()
            await consuming.start()
            background.once("preparation", prepare, limit=PREPARE_SECONDS)
            try:
                yield
            finally:
                await background.stop()
                await asyncio.gather(*(consumer.stop(settings.shutdown_seconds) for consumer in table))
                await relay.stop(settings.shutdown_seconds)
                await commits.close()
                await consuming.close()
                await publishing.close()
                await database.close()

    limits = Limits(
        key_rate=Rate(settings.rate_limit, 2 * settings.rate_limit) if settings.rate_limit else None,
        body=settings.max_body,
        bodies_in_hand=settings.bodies_in_hand,
        bodies={attachments.UPLOAD: MAX_ATTACHMENT, subscribers.IMPORT_PATH: subscribers.MAX_IMPORT},
    )
    app = create_app("Bellhop gateway", "1", lifespan, ROUTERS, limits=limits)
    app.add_exception_handler(DatabaseUnavailable, _database_unavailable)
    app.state.system = system_id(settings.admin_key.get_secret_value())
    return app


async def _warn_of_reserved_names(keys: Keys) -> None:
    for name in await keys.names() - {ADMIN}:
        if is_reserved_name(name):
            log.warning("revoke the keys of this name: Bellhop uses the name itself", name=name)


async def _database_unavailable(_request: Request, error: Exception) -> Response:
    return problem_response(unavailable(f"Nothing was done: {error}."))


async def _ready(gateway: Gateway, publisher: Publisher, table: list[Consumer]) -> dict[str, str]:
    idle = [consumer.queue for consumer in table if not consumer.consuming]
    return {
        "database": await check(gateway.ledger.check),
        "publishing": publisher.trouble or "ok",
        "consuming": f"not yet from {', '.join(idle)}" if idle else "ok",
    }


async def _withdraw(withdrawals: Withdrawals, waiters: Waiters) -> float | None:
    """End some of what waits for people who get no mail any more; return 0 where there may be more."""
    ended = await withdrawals.step()
    if ended is None:
        return None
    waiters.wake(ended)
    return 0.0


class _Authenticator:
    """Finds callers, and remembers them for a moment: a query for every request would cost more than the rest."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._known: dict[str, tuple[float, Caller]] = {}

    async def find(self, key: str) -> Caller | None:
        found = self._known.get(key)
        if found is not None and found[0] > monotonic():
            return found[1]
        caller = await self._keys.find(key)
        if caller is not None:
            if len(self._known) > 10_000:
                self._known.clear()
            self._known[key] = (monotonic() + KEY_CACHE_SECONDS, caller)
        return caller
