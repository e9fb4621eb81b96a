"""What the gateway's handlers, jobs and routes work with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from fastapi.openapi.models import HTTPBearer
from starlette.requests import Request

from bellhop.http import internal_client
from bellhop.service import Base
from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.web import tokens
from bellhop.web.auth import Guard, bearer
from bellhop.web.peer import Peer
from bellhop.web.problems import Problem
from bellhop.web.rate_limit import Limiter
from services.gateway import metrics
from services.gateway.acceptance.service import Intake
from services.gateway.attachments.store import AttachmentStore
from services.gateway.broadcasts import newsletter
from services.gateway.broadcasts.newsletter import Newsletter
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.events.reactions import ReactionTypes
from services.gateway.keys.authenticator import Authenticator
from services.gateway.keys.store import Keys
from services.gateway.leaderboards.board_names import BoardNames
from services.gateway.leaderboards.boards import Boards
from services.gateway.leaderboards.marks import Marks
from services.gateway.outbox.entry_publisher import EntryPublisher
from services.gateway.outbox.publisher import OutboxPublisher
from services.gateway.outbox.routing import Routing
from services.gateway.settings import Settings
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.system.retention import Retention
from services.gateway.tasks.live import LiveOutcomes
from services.gateway.tasks.overdue import StaleTasks
from services.gateway.tasks.store import Ledger
from services.gateway.tasks.waiters import Waiters
from services.gateway.tasks.withdrawals import Withdrawals


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of the running gateway."""

    settings: Settings
    database: Database
    commits: GroupCommit
    intake: Intake
    ledger: Ledger
    keys: Keys
    dead_letters: DeadLetters
    attachments: AttachmentStore
    boards: Boards
    waiters: Waiters
    http: httpx.AsyncClient
    leaderboard: Peer
    mailer: Peer
    newsletter: Newsletter
    reactions: ReactionTypes
    outbox_publisher: OutboxPublisher
    live: LiveOutcomes
    withdrawals: Withdrawals
    marks: Marks
    overdue: StaleTasks
    retention: Retention


@asynccontextmanager
async def open_gateway(base: Base[Settings]) -> AsyncIterator[Gateway]:
    """Open the gateway; on shutdown publish what was handed over and commit pending writes."""
    settings, database, publisher = base.settings, base.database, base.publisher
    commits = GroupCommit(database)
    routing = Routing(settings.live_types)
    entry_publisher = EntryPublisher(publisher, routing)
    outbox_publisher = OutboxPublisher(database, commits, publisher, entry_publisher)
    metrics.OUTBOX.set_function(lambda: outbox_publisher.waiting)
    suppressions = SuppressionStore(database, settings.bounce_days)
    intake = Intake(commits, outbox_publisher, publisher, entry_publisher, settings.outbox_limit, suppressions.accept)
    news = newsletter.build(settings, database, suppressions, intake)
    keys = Keys(database)
    async with internal_client() as http:
        token_key = settings.token_key.get_secret_value()
        leaderboard = Peer("leaderboard", settings.leaderboard_url, token_key, http, subject="gateway")
        parts = Gateway(
            settings=settings,
            database=database,
            commits=commits,
            intake=intake,
            ledger=Ledger(database, suppressions.note_bounces),
            keys=keys,
            dead_letters=DeadLetters(database, settings.unrouted_limit),
            attachments=AttachmentStore(
                database, settings.attachment_days, settings.attachment_quota, settings.attachment_total
            ),
            boards=Boards(BoardNames(database), settings, leaderboard),
            waiters=Waiters(),
            http=http,
            leaderboard=leaderboard,
            mailer=Peer("mailer", settings.mailer_url, settings.mailer_key, http, subject="gateway"),
            newsletter=news,
            reactions=ReactionTypes(database, routing),
            outbox_publisher=outbox_publisher,
            live=LiveOutcomes(publisher),
            withdrawals=Withdrawals(database),
            marks=Marks(database, publisher, leaderboard),
            overdue=StaleTasks(database, news.maker, outbox_publisher, settings.republish_minutes * 60),
            retention=Retention(database, settings),
        )
        base.app.state.gateway = parts
        base.app.state.authenticate = Authenticator(keys).find
        try:
            yield parts
        finally:
            await outbox_publisher.stop(settings.shutdown_seconds)
            await commits.close()


def gateway(request: Request) -> Gateway:
    """Return the parts; a plain function, because a FastAPI dependency would cost every request."""
    parts: Gateway = request.app.state.gateway
    return parts


class MailerOnly(Guard):
    """The guard of routes for the mailer alone, with a token for `audience` that no client can have."""

    model = HTTPBearer(bearerFormat="JWT", description="A token of the mailer")
    scheme_name = "mailer"

    def __init__(self, audience: str) -> None:
        self.audience = audience

    async def identify(self, request: Request) -> None:
        """Raise Problem 401 or 429 unless the mailer asks; no limit counts its requests."""
        limiter: Limiter = request.app.state.limiter
        try:
            tokens.read(bearer(request), gateway(request).settings.mailer_key, self.audience)
        except Problem:
            limiter.count_rest(request.scope)
            raise
        limiter.exempt(request.scope)
