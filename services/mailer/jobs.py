"""What the mailer does periodically."""

from bellhop.observe.logs import get_logger
from bellhop.service import Job, Loop
from services.mailer.announcing import REPEAT_SECONDS, announce
from services.mailer.parts import Mailer
from services.mailer.rendering import reaction_types

HEARTBEAT_SECONDS = 3.0
FORGET_SECONDS = 3600.0

log = get_logger(__name__)


async def _announce(mailer: Mailer) -> float | None:
    return await announce(mailer.publisher, sorted(reaction_types(mailer.settings.templates)))


async def _forget(mailer: Mailer) -> None:
    """Delete what is older than its retention."""
    gone = await mailer.worker.inbox.delete_old(mailer.settings.inbox_days)
    await mailer.send_rate.delete_old()
    if gone:
        log.info("forgot old tasks", tasks=gone)


async def _stop_waiting_for_relays(mailer: Mailer) -> None:
    """Tell mails in hand that wait for a relay to give up when the process is told to stop."""
    await mailer.stopping.wait()
    mailer.relays.give_up()


JOBS: tuple[Job[Mailer] | Loop[Mailer], ...] = (
    Job("heartbeat", HEARTBEAT_SECONDS, lambda mailer: mailer.worker.inbox.beat()),
    Job("refreshing the limits", HEARTBEAT_SECONDS, lambda mailer: mailer.send_rate.refresh()),
    Job("announcing templates", REPEAT_SECONDS, _announce),
    Job("closing idle connections", HEARTBEAT_SECONDS, lambda mailer: mailer.relays.sweep()),
    Job("retention", FORGET_SECONDS, _forget, limit=FORGET_SECONDS),
    Loop("ending the wait for relays", _stop_waiting_for_relays),
)
