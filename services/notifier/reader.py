"""Read the stream, completely and in order, and pass its events to the hub."""

import asyncio
from contextlib import aclosing

from pydantic import ValidationError

from bellhop.amqp.errors import StreamReplaced
from bellhop.amqp.message import Delivery
from bellhop.amqp.streams import read_stream
from bellhop.observe.logs import get_logger
from services.notifier import metrics
from services.notifier.events import Event, key_of, offset_of, read_event
from services.notifier.hub import Hub

QUEUE = "notifier.log"
PEEK_SECONDS = 1.0
RESTART_SECONDS = 5.0

log = get_logger(__name__)


class Reader:
    """Reads the whole stream; each replica has one."""

    def __init__(self, hub: Hub, url: str, *, name: str, window_seconds: int, live_types: dict[str, str]) -> None:
        """`live_types`: event type -> template of its channel, from the settings."""
        self._hub = hub
        self._url = url
        self._name = name
        self._window = f"{window_seconds}s"
        self._live_types = live_types
        self._connected = False
        self._resumed = False
        self._last: int | None = None

    @property
    def status(self) -> str:
        """Return "ok", or a sentence that names what the reader waits for."""
        if not self._connected:
            return f"cannot read the stream {QUEUE} from RabbitMQ; trying again"
        return "ok" if self._hub.ready.is_set() else "still reading the newest part of the stream"

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            try:
                await self._follow()
            except StreamReplaced as error:
                log.warning("reading another stream from now on", reason=str(error))
                self._hub.restart("The event stream was created again. Fetch the present state; live events follow.")
                self._last = None
                continue
            except Exception:
                log.exception("reading the stream failed; starting again", seconds=RESTART_SECONDS)
            self._connected = False
            await asyncio.sleep(RESTART_SECONDS)

    async def _follow(self) -> None:
        offset = await self._find_start() if self._last is None else self._last + 1
        log.info("reading the stream", stream=QUEUE, offset=offset)
        deliveries = read_stream(
            self._url,
            QUEUE,
            offset=offset,
            name=self._name,
            connected=self._on_connected,
            skipped=self._skip,
        )
        async with aclosing(deliveries):
            async for delivery in deliveries:
                self._take(delivery)

    async def _find_start(self) -> int | str:
        """Return the offset to begin at: the first event of the window, or the newest one if that is older.

        After hours without events, a client that resumes from the newest event must get no gap.
        """
        newest = await self._peek("last")
        self._hub.expect(-1 if newest is None else newest)
        if newest is None:
            return "first"
        oldest = await self._peek(self._window)
        return newest if oldest is None else min(oldest, newest)

    async def _peek(self, offset: str) -> int | None:
        """Return the first offset that RabbitMQ returns for `offset`, or None if there is no message.

        `read_stream` calls `connected` after the first messages have arrived; `PEEK_SECONDS` is the time to decode
        them.
        """
        up = asyncio.Event()
        deliveries = read_stream(
            self._url,
            QUEUE,
            offset=offset,
            name=f"{self._name} (looking for the start)",
            prefetch=1,
            connected=lambda connected: up.set() if connected else None,
        )
        async with aclosing(deliveries):
            first = asyncio.ensure_future(anext(deliveries))
            try:
                await asyncio.wait({first, waiting := asyncio.ensure_future(up.wait())}, return_when="FIRST_COMPLETED")
                await asyncio.wait({first}, timeout=PEEK_SECONDS)
                return offset_of(first.result()) if first.done() else None
            finally:
                first.cancel()
                waiting.cancel()
                await asyncio.gather(first, waiting, return_exceptions=True)

    def _on_connected(self, connected: bool) -> None:
        self._connected = connected
        self._resumed = self._last is not None
        self._hub.look()

    def _take(self, delivery: Delivery) -> None:
        event = self._read(delivery)
        self._move_to(event.offset)
        self._hub.publish(event)

    def _skip(self, offset: int) -> None:
        metrics.NOT_SHOWN.labels("foreign").inc()
        self._move_to(offset)

    def _move_to(self, offset: int) -> None:
        if self._resumed and self._last is not None and offset != self._last + 1:
            # RabbitMQ starts at its oldest message, without an error, if the requested offset is no longer retained.
            self._hub.restart(f"Events after offset {self._last} are lost. Fetch the present state again.")
        self._resumed = False
        self._last = offset

    def _read(self, delivery: Delivery) -> Event:
        try:
            return read_event(delivery, self._live_types)
        except ValueError as error:
            metrics.NOT_SHOWN.labels("unreadable").inc()
            log.warning(
                "cannot show an event",
                type=delivery.envelope.type,
                id=delivery.envelope.id,
                offset=delivery.offset,
                reason=_reason(error),
            )
            return Event(offset_of(delivery), key_of(delivery.envelope))


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):  # its text would quote the body
        return "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
    return str(error)
