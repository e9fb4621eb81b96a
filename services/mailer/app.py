"""The application of the mailer: its queues, jobs, routes and checks."""

from collections.abc import Sequence
from functools import partial

from fastapi import FastAPI

from bellhop.contracts.kinds import MAIL
from bellhop.service import Queue, Service
from services.mailer import handlers, reactions, routes
from services.mailer.jobs import JOBS
from services.mailer.parts import Mailer, open_mailer
from services.mailer.rendering import BadTemplate, Templates
from services.mailer.settings import MailerSettings

MAX_PREFETCH = 160
"""Of one lane, whose mails have at most about 1 MiB."""


def queues(mailer: Mailer) -> Sequence[Queue[Mailer]]:
    """Return what the mailer consumes. The lanes share the connections to the relays (bellhop/tasks/lanes.py).

    The prefetch of a lane is a multiple of the number of connections: a few deliveries are being sent, most are
    being claimed, recorded or reported, and each of these steps waits for a disk. A larger prefetch would be faster,
    but after a crash each unsettled delivery must be treated as possibly sent, and a mail may have 1 MiB.
    """
    prefetch = min(8 * mailer.connections, MAX_PREFETCH)
    return [
        Queue(MAIL.cancel_queue, handlers.cancel_mail, 100),
        # Cancels that were in their queue when the mailer started are handled before any mail is sent.
        *(Queue(queue, handlers.send_mail, prefetch, after=MAIL.cancel_queue) for queue in MAIL.queues.values()),
        Queue("mailer.reactions", reactions.react, 50, after=MAIL.cancel_queue),
    ]


async def prepare(mailer: Mailer) -> None:
    """Write the first heartbeat before any task is claimed."""
    await mailer.worker.inbox.beat()
    await mailer.send_rate.refresh()


async def ready(mailer: Mailer) -> dict[str, str]:
    """Return the mailer's own checks."""
    late = {} if mailer.worker.inbox.fresh else {"database": "no heartbeat can be written to the database"}
    return late | {"relay": mailer.relays.failure or "ok"}


def build(settings: MailerSettings) -> FastAPI:
    """Return the application; exit with an error message if a template file cannot be used."""
    try:
        templates = Templates(settings.templates)
    except BadTemplate as error:
        raise SystemExit(str(error)) from None
    service = Service(
        "mailer", MailerSettings, partial(open_mailer, templates=templates), [routes.router],
        queues=queues, jobs=lambda _: JOBS, prepare=prepare, ready=ready,
    )  # fmt: skip
    return service.create_app(settings)
