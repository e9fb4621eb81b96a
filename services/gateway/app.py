"""The gateway: accepts requests, publishes their messages, stores their outcomes."""

from collections.abc import Sequence

from fastapi import FastAPI

from bellhop.contracts.identity import ADMIN, is_reserved_name
from bellhop.contracts.mail import MAX_ATTACHMENT_BYTES
from bellhop.contracts.reactions import QUEUE as ANNOUNCEMENTS
from bellhop.observe.logs import get_logger
from bellhop.service import Queue, Service
from bellhop.web.auth import system_id
from bellhop.web.rate_limit import Rate
from bellhop.web.request_limits import Limits
from services.gateway import handlers
from services.gateway.attachments import routes as attachments
from services.gateway.jobs import JOBS
from services.gateway.outbox.routing import UNROUTED
from services.gateway.parts import Gateway, open_gateway
from services.gateway.routers import ROUTERS
from services.gateway.settings import Settings
from services.gateway.subscribers import routes as subscribers

QUEUES: Sequence[Queue[Gateway]] = (
    Queue("gateway.outcomes", handlers.apply_outcome, prefetch=500),
    # Foreign messages of 16 MiB become dead letters, too.
    Queue("dead-letters", handlers.store_dead_letter, prefetch=8),
    Queue(UNROUTED, handlers.store_unrouted, prefetch=20),
    Queue(ANNOUNCEMENTS, handlers.note_reactions, prefetch=10),
)

log = get_logger(__name__)


async def prepare(gateway: Gateway) -> None:
    """Make the first key, and load what routes events."""
    await gateway.keys.ensure_admin(gateway.settings.admin_key.get_secret_value())
    for name in await gateway.keys.names() - {ADMIN}:
        if is_reserved_name(name):
            log.warning("revoke the keys of this name: Bellhop uses the name itself", name=name)
    await gateway.reactions.load()


def limits(settings: Settings) -> Limits:
    """Return how large and how many requests may be."""
    return Limits(
        key_rate=Rate(settings.rate_limit, 2 * settings.rate_limit) if settings.rate_limit else None,
        body=settings.max_body,
        bodies_in_hand=settings.bodies_in_hand,
        bodies={attachments.UPLOAD: MAX_ATTACHMENT_BYTES, subscribers.IMPORT_PATH: subscribers.MAX_IMPORT},
    )


SERVICE = Service(
    "gateway", Settings, open_gateway, ROUTERS, queues=lambda _: QUEUES, jobs=lambda _: JOBS, prepare=prepare,
    limits=limits,
)  # fmt: skip


def build(settings: Settings) -> FastAPI:
    """Return the application."""
    app = SERVICE.create_app(settings)
    app.state.system = system_id(settings.admin_key.get_secret_value())
    return app
