"""The jobs of the mailer."""

from bellhop.observe.logs import get_logger
from bellhop.service import Job, Loop
from services.mailer.announcing import REPEAT_SECONDS, announce
from services.mailer.parts import Mailer
from services.mailer.rendering import reaction_types

HEARTBEAT_SECONDS = 3.0
RETENTION_SECONDS = 3600.0

log = get_logger(__name__)


async def _announce(mailer: Mailer) -> float | None:
    return await announce(mailer.publisher, sorted(reaction_types(mailer.settings.templates)))


async def _delete_old(mailer: Mailer) -> None:
    """Delete rows that are older than their retention."""
    deleted = await mailer.worker.inbox.delete_old(mailer.settings.inbox_days)
    await mailer.send_rate.delete_old()
    if deleted:
        log.info("deleted old tasks from the inbox", tasks=deleted)


async def _stop_waiting_for_relays(mailer: Mailer) -> None:
    """End all waits for a relay when the process stops: their mails return to the queue."""
    await mailer.stopping.wait()
    mailer.relays.stop_waiting()


JOBS: tuple[Job[Mailer] | Loop[Mailer], ...] = (
    Job("heartbeat", HEARTBEAT_SECONDS, lambda mailer: mailer.worker.inbox.beat()),
    Job("refreshing the limits", HEARTBEAT_SECONDS, lambda mailer: mailer.send_rate.refresh()),
    Job("announcing templates", REPEAT_SECONDS, _announce),
    Job("closing idle connections", HEARTBEAT_SECONDS, lambda mailer: mailer.relays.sweep()),
    Job("retention", RETENTION_SECONDS, _delete_old, limit=RETENTION_SECONDS),
    Loop("ending the wait for relays", _stop_waiting_for_relays),
)
