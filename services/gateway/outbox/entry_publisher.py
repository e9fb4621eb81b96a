"""Publishes entries of the outbox: an event to all of its destinations, any other message as it is.

An entry for the exchange `events` is an event that has not been routed yet: its destinations are those of its type at
the moment when it is published, which also holds for rows that an earlier version wrote. When some destinations
confirm it and others do not, entries for the others are left: nothing is repeated where it was confirmed.
"""

import asyncio
from dataclasses import dataclass, replace

from bellhop.amqp.errors import PublishError, Refused, Unroutable
from bellhop.amqp.headers import DEAD_LETTERED_AT
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import new_id, now
from bellhop.observe.logs import get_logger
from services.gateway.outbox.routing import EVENTS, OTHER_TYPES, UNROUTED, Destination, Routing
from services.gateway.outbox.store import Entry

COPY = "events:copy"
"""In the outbox: the exchange `events`, where only the copy for other consumers is left."""

Confirm = asyncio.Future[None] | PublishError

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PendingEntry:
    """An entry that was published and is not confirmed yet."""

    entry: Entry
    parts: tuple[tuple[Destination, Confirm], ...]


@dataclass(frozen=True, slots=True)
class PublishResult:
    """The result of publishing an entry."""

    entry: Entry
    left: tuple[Entry, ...] = ()
    """What still has to be published: nothing, the entry itself, or what is left of it."""
    error: PublishError | None = None


class EntryPublisher:
    """Publishes entries and waits for their confirms."""

    def __init__(self, publisher: Publisher, routing: Routing) -> None:
        self._publisher = publisher
        self._routing = routing

    @property
    def ready(self) -> bool:
        """Return whether the destinations of events are known."""
        return self._routing.loaded

    def grouped(self, entry: Entry) -> Entry:
        """Return `entry` as it is written to the outbox: types without a queue of ours share a destination."""
        if entry.exchange != EVENTS or len(self._routing.destinations(entry.message.envelope.type)) > 1:
            return entry
        return replace(entry, routing_key=OTHER_TYPES)

    async def publish(self, entry: Entry) -> PublishResult:
        """Publish and return once every destination confirmed or refused. Raises nothing."""
        return await self.end(await self.begin(entry))

    async def begin(self, entry: Entry) -> PendingEntry:
        """Send to every destination, once there is room in the publisher's window; `end` waits for the confirms."""
        parts = [
            (destination, await self._send(destination, entry.message)) for destination in self._destinations(entry)
        ]
        return PendingEntry(entry, tuple(parts))

    async def end(self, pending: PendingEntry) -> PublishResult:
        """Wait for the confirms of all destinations."""
        entry = pending.entry
        failed: list[tuple[Destination, PublishError]] = []
        for destination, confirm in pending.parts:
            error = await _outcome(confirm)
            if isinstance(error, Unroutable) and not destination.required:
                error = await self._keep_unrouted(entry)
            if error is not None:
                failed.append((destination, error))
        if not failed:
            return PublishResult(entry)
        error = failed[0][1]
        if len(failed) == len(pending.parts):
            return PublishResult(entry, (entry,), error)
        return PublishResult(entry, tuple(_rest(entry, destination) for destination, _ in failed), error)

    def _destinations(self, entry: Entry) -> tuple[Destination, ...]:
        if entry.exchange == EVENTS:
            return self._routing.destinations(entry.message.envelope.type)
        if entry.exchange == COPY:
            return (Destination(COPY, entry.routing_key, required=False),)
        return (Destination(entry.exchange, entry.routing_key, required=True),)

    async def _send(self, destination: Destination, message: Message) -> Confirm:
        exchange = EVENTS if destination.exchange == COPY else destination.exchange
        # Only an event that none of our own queues needs must reach another client's queue, or be kept.
        copy = not destination.required and (destination.exchange == COPY or self._is_copy(message))
        try:
            return await self._publisher.begin(exchange, destination.routing_key, message, mandatory=not copy)
        except PublishError as error:
            return error
        except Exception as error:
            # One message that cannot be sent at all must not keep the others from going out.
            log.exception("a message cannot be published", exchange=exchange, id=message.envelope.id)
            return Refused(f"cannot be published: {error}")

    def _is_copy(self, message: Message) -> bool:
        return len(self._routing.destinations(message.envelope.type)) > 1

    async def _keep_unrouted(self, entry: Entry) -> PublishError | None:
        message = entry.message
        # The time distinguishes it from an earlier dead letter of the same event, which was replayed.
        kept = replace(message, headers=message.headers | {DEAD_LETTERED_AT: now().isoformat()})
        destination = Destination(UNROUTED, message.envelope.type, required=True)
        return await _outcome(await self._send(destination, kept))


async def _outcome(confirm: Confirm) -> PublishError | None:
    if isinstance(confirm, PublishError):
        return confirm
    try:
        await confirm
    except PublishError as error:
        return error
    return None


def _rest(entry: Entry, destination: Destination) -> Entry:
    exchange = destination.exchange if destination.required else COPY
    return replace(entry, id=new_id(), exchange=exchange, routing_key=destination.routing_key, due_at=0)
