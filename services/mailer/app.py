"""The mailer: takes mail tasks off their queues, sends the mails, reports their outcomes."""

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

    A lane has several times as many deliveries in hand as there are connections: while some are on the wire, most
    are being claimed, recorded or reported, each of which waits for a disk. More would be faster still, but after a
    crash all that is in hand must be treated as possibly sent; and a mail may have a megabyte.
    """
    in_hand = min(8 * mailer.connections, MAX_PREFETCH)
    return [
        Queue(MAIL.cancel_queue, handlers.cancel_mail, 100),
        # No mail goes out before a cancel that lay on the queue when we started.
        *(Queue(queue, handlers.send_mail, in_hand, after=MAIL.cancel_queue) for queue in MAIL.queues.values()),
        Queue("mailer.reactions", reactions.react, 50, after=MAIL.cancel_queue),
    ]


async def prepare(mailer: Mailer) -> None:
    """Be known as alive before anything is claimed."""
    await mailer.worker.inbox.beat()
    await mailer.send_rate.refresh()


async def ready(mailer: Mailer) -> dict[str, str]:
    """Return the mailer's own checks."""
    late = {} if mailer.worker.inbox.fresh else {"database": "the database takes no heartbeat"}
    return late | {"relay": mailer.relays.failure or "ok"}


def build(settings: MailerSettings) -> FastAPI:
    """Return the application; end the process with a sentence where a template file cannot be used."""
    try:
        templates = Templates(settings.templates)
    except BadTemplate as error:
        raise SystemExit(str(error)) from None
    service = Service(
        "mailer", MailerSettings, partial(open_mailer, templates=templates), [routes.router],
        queues=queues, jobs=lambda _: JOBS, prepare=prepare, ready=ready,
    )  # fmt: skip
    return service.create_app(settings)
