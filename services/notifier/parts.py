"""Parts that loops and routes of the notifier use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bellhop.service import Base
from services.notifier.hub import Hub
from services.notifier.log import Log
from services.notifier.reader import Reader
from services.notifier.settings import NotifierSettings


@dataclass(frozen=True, slots=True)
class Notifier:
    """The open parts of the service."""

    base: Base[NotifierSettings]
    hub: Hub
    reader: Reader


def make_hub(settings: NotifierSettings) -> Hub:
    """Return an empty hub; a `Reader` publishes events to it."""
    return Hub(
        Log(events=settings.window_events, size=settings.window_bytes, seconds=settings.window_seconds),
        max_subscribers=settings.max_subscribers,
        max_per_subject=settings.max_subscribers_per_subject,
        ping_seconds=settings.ping_seconds,
    )


@asynccontextmanager
async def open_notifier(base: Base[NotifierSettings], hub: Hub) -> AsyncIterator[Notifier]:
    """Open the parts, with a reader that publishes to `hub`; none of them has to be closed."""
    settings = base.settings
    reader = Reader(
        hub,
        settings.amqp_url.get_secret_value(),
        name=f"bellhop/notifier/{settings.instance}/stream",
        window_seconds=settings.window_seconds,
        live_types=settings.live_types,
    )
    yield Notifier(base, hub, reader)
