"""What the routes reach for: everything that `app.py` composed, under one name."""

from dataclasses import dataclass

import httpx
from fastapi.openapi.models import HTTPBearer
from starlette.requests import Request

from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.web import tokens
from bellhop.web.auth import Guard, bearer
from bellhop.web.limits import Limiter
from bellhop.web.problems import Problem
from services.gateway.acceptance.service import Intake
from services.gateway.attachments.store import Attachments
from services.gateway.broadcasts.newsletter import Newsletter
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.events.reactions import ReactionTypes
from services.gateway.keys.store import Keys
from services.gateway.leaderboards.boards import Boards
from services.gateway.settings import Settings
from services.gateway.tasks.store import Ledger
from services.gateway.tasks.waiters import Waiters


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
    attachments: Attachments
    boards: Boards
    waiters: Waiters
    http: httpx.AsyncClient
    newsletter: Newsletter
    reactions: ReactionTypes


def gateway(request: Request) -> Gateway:
    """Return the parts; a plain function, because a FastAPI dependency would cost every request."""
    parts: Gateway = request.app.state.gateway
    return parts


class MailerOnly(Guard):
    """The guard of what the mailer alone may ask, with a token for `audience` that no client can have."""

    model = HTTPBearer(bearerFormat="JWT", description="A token of the mailer")
    scheme_name = "mailer"

    def __init__(self, audience: str) -> None:
        self.audience = audience

    async def __call__(self, request: Request) -> None:
        """Raise Problem 401 or 429 unless the mailer asks; no limit counts its requests."""
        limiter: Limiter = request.app.state.limiter
        try:
            tokens.read(bearer(request), gateway(request).settings.mailer_key, self.audience)
        except Problem:
            limiter.count_rest(request.scope)
            raise
        limiter.exempt(request.scope)
