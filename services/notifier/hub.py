"""Subscribers by channel, and the forwarding of events to them.

Everything here runs in one event loop, and `_flush`, `join` and `tick` never await. So between these calls every
subscriber has received all its events up to the end of the log.
"""

import asyncio
import time
from collections import Counter, defaultdict
from itertools import groupby
from typing import Protocol

from bellhop.web.problems import Problem
from services.notifier import metrics
from services.notifier.come_back import ComeBack
from services.notifier.events import Event
from services.notifier.frames import Run, http_chunk, message, sse_ping, websocket_text
from services.notifier.log import PIECE_BYTES, Log


class Ping:
    """A ping, encoded once for all subscribers that receive it now."""

    def __init__(self, id: str) -> None:
        self.sse_chunk = http_chunk(sse_ping(id))
        self.websocket = websocket_text(message("ping", id))


class Subscriber(Protocol):
    """One reader: a stream, a socket or a poll. Its methods do not block."""

    subject: str
    channels: tuple[str, ...]
    expires: float
    """Unix time."""

    def show(self, run: Run) -> None:
        """Send events."""

    def ping(self, ping: Ping) -> None:
        """Send a ping with the end of the log."""

    def send_gap(self, after: str, id: str, detail: str) -> None:
        """Send a gap: the events after `after` and up to `id` are missing; live from `id` on."""

    def finish(self, type: str, detail: str) -> None:
        """Send why it ends (`expired`, `evicted` or `closing`), and end. Later calls do nothing."""


class Hub:
    """Channel -> subscribers, over one log."""

    def __init__(self, log: Log, *, max_subscribers: int, max_per_subject: int, ping_seconds: int) -> None:
        self.log = log
        self.ready = asyncio.Event()
        """Set when the log holds the newest part of the stream, so that ids can be resolved."""
        self.draining = False
        self.come_back = ComeBack()
        self._limits = (max_subscribers, max_per_subject)
        self._ping_seconds = ping_seconds
        self._subscribers: dict[Subscriber, int] = {}
        self._subjects: Counter[str] = Counter()
        self._channels: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._waiting: list[Event] = []
        self._expected: int | None = None
        self._serial = 0
        self._second = 0

    def admit(self, subscriber: Subscriber) -> None:
        """Count `subscriber`; `leave` must follow.

        Raises:
            Problem: 503 if this process is full or stopping, 429 if the subject has too many streams.
        """
        most, most_per_subject = self._limits
        if self.draining:
            raise _refused(503, "closing", "This process is stopping. Connect again: another one answers.")
        if len(self._subscribers) >= most:
            raise _refused(503, "process", f"All {most} places of this process are taken. Try again later.")
        if self._subjects[subscriber.subject] >= most_per_subject:
            raise _refused(429, "subject", f"This subject has {most_per_subject} streams already. Close one of them.")
        self._serial += 1
        self.come_back.connected += 1
        self._subscribers[subscriber] = self._serial
        self._subjects[subscriber.subject] += 1
        metrics.SUBSCRIBERS.inc()

    def join(self, subscriber: Subscriber) -> None:
        """Send all further events to `subscriber`, which has received all events up to the end of the log."""
        for channel in subscriber.channels:
            self._channels[channel].add(subscriber)

    def leave(self, subscriber: Subscriber) -> None:
        """Remove `subscriber`. Idempotent."""
        if self._subscribers.pop(subscriber, None) is None:
            return
        self.come_back.connected -= 1
        metrics.SUBSCRIBERS.dec()
        self._subjects[subscriber.subject] -= 1
        if not self._subjects[subscriber.subject]:
            del self._subjects[subscriber.subject]
        for channel in subscriber.channels:
            readers = self._channels.get(channel)
            if readers is not None:
                readers.discard(subscriber)
                if not readers:
                    del self._channels[channel]

    def expect(self, offset: int) -> None:
        """Set `ready` when the log reaches `offset`; -1: as soon as the stream is being read."""
        self._expected = offset

    def look(self) -> None:
        """Set `ready` if the log has reached the expected offset."""
        if self._expected is not None and self.log.end >= self._expected and not self._waiting:
            self.ready.set()

    def publish(self, event: Event) -> None:
        """Append `event` to the log, and send it to its subscribers in this turn of the event loop.

        Events that arrive together are sent together: one write for each subscriber.
        """
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(event)

    def restart(self, detail: str) -> None:
        """Clear the log, because the stream does not continue it; send a gap to all subscribers."""
        while self._waiting:
            self._flush()
        after = self.log.end_id
        self.log.clear()
        for subscriber in list(self._subscribers):
            if self._joined(subscriber):
                metrics.GAPS.inc()
                subscriber.send_gap(after, self.log.end_id, detail)
            else:
                # During a replay, or the start of one: its offset is invalid.
                subscriber.finish("closing", detail)

    def drain(self, detail: str) -> None:
        """End all streams and refuse new ones. Idempotent."""
        self.draining = True
        for subscriber in list(self._subscribers):
            subscriber.finish("closing", detail)

    async def tick(self) -> None:
        """End expired streams, and ping one `ping_seconds`-th of the others. Call it every second."""
        self._second += 1
        self.come_back.forget_some()
        now = time.time()
        for subscriber in [subscriber for subscriber in self._subscribers if subscriber.expires <= now]:
            subscriber.finish("expired", "The token is over. Get a new one and resume from the last id.")
        if not self.ready.is_set():
            return
        ping = Ping(self.log.end_id)
        for subscriber, serial in list(self._subscribers.items()):
            # Only joined subscribers have received all events up to that id.
            if (serial + self._second) % self._ping_seconds == 0 and self._joined(subscriber):
                subscriber.ping(ping)

    def _joined(self, subscriber: Subscriber) -> bool:
        return subscriber in self._channels.get(subscriber.channels[0], ())

    def _flush(self) -> None:
        for channels, run in groupby(self._take(), key=lambda event: event.channels):
            self._show(channels, list(run))
        if not self.ready.is_set():
            self.look()
        metrics.LOG_EVENTS.set(len(self.log))
        metrics.LOG_BYTES.set(self.log.bytes)
        metrics.LOG_FIRST.set(self.log.first)
        metrics.LOG_END.set(self.log.end)

    def _take(self) -> list[Event]:
        """Append waiting events to the log, and return those to send now: as many as fit into a reader's buffer."""
        shown = []
        size = taken = 0
        for event in self._waiting:
            taken += 1
            if self.log.append(event):
                shown.append(event)
                size += event.size
            else:
                metrics.NOT_SHOWN.labels("copy" if event.channels else "no channel").inc()
            if size >= PIECE_BYTES:
                break
        del self._waiting[:taken]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        return shown

    def _show(self, channels: tuple[str, ...], events: list[Event]) -> None:
        reached: set[Subscriber] = set()
        for channel in channels:
            readers = self._channels.get(channel)
            if not readers:
                continue
            run = Run([(event, channel) for event in events])
            # A subscriber of several of an event's channels receives it once.
            targets = readers - reached if reached else readers
            for subscriber in targets:
                subscriber.show(run)
            metrics.DELIVERIES.inc(len(events) * len(targets))
            if len(channels) > 1:
                reached |= targets


def _refused(status: int, limit: str, detail: str) -> Problem:
    metrics.REFUSED.labels(limit).inc()
    title = "Service Unavailable" if status == 503 else "Too Many Requests"
    return Problem(status, title, detail, headers={"Retry-After": "5"})
