"""The relays: selection of the relay for a mail, and failover.

The relays with the lowest priority number share the mails by weight; those of the next number are used if none of
these works. A failure of a relay does not count as an attempt of the mail. After several failures in a row (no
connection, no login, a timeout, a lost connection, a refusal of our sender) the relay's breaker opens: it gets no mail,
and one connection at a time probes it. A mail that the relay has certainly not accepted is sent by the next relay
immediately. A mail that it may have accepted, because it did not reply to the final dot, is not: it is reported as
uncertain and retried.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from bellhop.background import Background
from bellhop.contracts.tasks import Lane
from bellhop.observe.logs import get_logger
from bellhop.tasks.breaker import Breaker
from bellhop.tasks.lanes import Lanes
from services.mailer import metrics
from services.mailer.relays.replies import Cause, Kind, Verdict
from services.mailer.relays.sendgrid import SendGrid
from services.mailer.relays.settings import AnyRelay, SendGridRelay
from services.mailer.relays.smtp import Smtp
from services.mailer.relays.transport import Outgoing, RelayUnavailable, Transport

MIN_PROBE_INTERVAL_SECONDS = 1.0
MAX_PROBE_INTERVAL_SECONDS = 30.0
MAX_WAIT_SECONDS = 600.0
"""Timeout of the wait for a connection, and of the wait for a usable relay; then the delivery returns to its queue. The
sum must be less than RabbitMQ's consumer timeout of 30 minutes. A short timeout would return deliveries often, and
before RabbitMQ 4.0 each return counts towards the delivery limit of a quorum queue."""
REFUSING_DOMAINS = 3
"""A policy refusal concerns the recipient's domain; after refusals for so many domains in a row, it concerns the relay.
"""
UNKNOWN_ADDRESSES = 20
UNKNOWN_DOMAINS = 5
"""After so many unknown addresses in a row, in so many domains, the cause is the relay and not the addresses: a relay
that answers "no such user" to every mail must not suppress a whole list."""

log = get_logger(__name__)


class Relay:
    """One relay: its transport, its connections and its breaker."""

    def __init__(self, settings: AnyRelay, transport: Transport, on_recovery: Callable[[], None]) -> None:
        """`on_recovery` is called when the relay works again."""
        self.settings = settings
        self._on_recovery = on_recovery
        self.transport = transport
        self.lanes = Lanes(settings.connections)
        self.breaker = Breaker(self._opened, self._closed)
        self.probe_interval = MIN_PROBE_INTERVAL_SECONDS
        self.refusing: set[str] = set()
        """The domains to which it refused mail by policy since it last accepted a mail."""
        self.unknown: list[str] = []
        """The domains of the addresses that it did not know since it last accepted a mail."""

    @property
    def address(self) -> str:
        """Return host and port, for logs and errors."""
        return self.transport.address

    def _opened(self) -> None:
        log.warning("no mail goes to a relay until it works again", relay=self.address, reason=self.breaker.failure)
        metrics.RELAY_UP.labels(self.settings.name).set(0)

    def _closed(self) -> None:
        log.info("a relay takes mail again", relay=self.address)
        metrics.RELAY_UP.labels(self.settings.name).set(1)
        self._on_recovery()

    async def send(self, mail: Outgoing, lane: Lane) -> Verdict:
        """Wait for a connection for this lane, and send."""
        if not self.lanes.try_enter(lane):
            await self._wait_for_connection(lane)
        try:
            if self.breaker.failure is not None:
                raise RelayUnavailable(self.breaker.failure)
            return await self.transport.send(mail)
        finally:
            self.lanes.leave(lane)

    async def _wait_for_connection(self, lane: Lane) -> None:
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await self.lanes.enter(lane)
        except TimeoutError:
            raise RelayUnavailable(
                f"waited {MAX_WAIT_SECONDS:g} s for a connection to the relay {self.address}"
            ) from None

    def observe(self, verdict: Verdict, domain: str) -> None:
        """Update the breaker after an attempt of a mail to `domain`."""
        if verdict.kind is Kind.SENT:
            self.probe_interval = MIN_PROBE_INTERVAL_SECONDS
            self.refusing.clear()
            self.unknown.clear()
            self.breaker.succeeded()
        elif verdict.cause is Cause.RELAY:
            self.breaker.failed(verdict.sentence)
        elif verdict.cause is Cause.POLICY:
            self.refusing.add(domain)
            if len(self.refusing) >= REFUSING_DOMAINS:
                self.refusing.clear()
                self.breaker.open(f"the relay {self.address} refuses mail to every domain: {verdict.sentence}")
        elif verdict.cause is Cause.BAD_ADDRESS:
            self.unknown.append(domain)
            if len(self.unknown) >= UNKNOWN_ADDRESSES and len(set(self.unknown)) >= UNKNOWN_DOMAINS:
                self.unknown.clear()
                self.breaker.open(f"the relay {self.address} knows no recipient: {verdict.sentence}")


class Relays:
    """All relays of the settings."""

    def __init__(self, relays: Sequence[AnyRelay], hello: str) -> None:
        """`hello`: the name that we give in EHLO."""
        self._closing = asyncio.Event()
        self._recovered = asyncio.Event()  # set each time that a relay works again
        self._relays = [Relay(settings, _transport(settings, hello), self._recovered.set) for settings in relays]
        self._probing = Background()
        for relay in self._relays:
            metrics.RELAY_UP.labels(relay.settings.name).set(1)
            metrics.FAILOVERS.labels(relay.settings.name)

    @property
    def failure(self) -> str | None:
        """Return why no mail can be sent; None if it can."""
        failures = [relay.breaker.failure for relay in self._relays if relay.breaker.failure is not None]
        return "; ".join(failures) if len(failures) == len(self._relays) else None

    @property
    def busy(self) -> int:
        """Return the number of mails that are being sent."""
        return sum(relay.lanes.busy for relay in self._relays)

    async def usable(self) -> list[Relay]:
        """Return the relays that work, in the order in which to try them; wait until there is one.

        Raises:
            RelayUnavailable: no relay works after `MAX_WAIT_SECONDS`, or the process stops.
        """
        if found := self._order():
            return found
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                while not (found := self._order()):
                    if self._closing.is_set():
                        raise RelayUnavailable(self.failure or "this mailer is stopping")
                    self._recovered.clear()
                    await self._recovered.wait()
        except TimeoutError:
            raise RelayUnavailable(self.failure or "no relay works") from None
        return found

    def _order(self) -> list[Relay]:
        if len(self._relays) == 1:
            return self._relays if self._relays[0].breaker.closed else []
        working = [relay for relay in self._relays if relay.breaker.closed]
        # A weighted random order: sort by exponentially distributed numbers, divided by the weights.
        return sorted(
            working, key=lambda relay: (relay.settings.priority, random.expovariate(1.0) / relay.settings.weight)
        )

    async def send(self, relay: Relay, mail: Outgoing, lane: Lane) -> Verdict:
        """Send by one relay, and update its breaker with the result.

        Raises:
            RelayUnavailable: the mail was not sent, for a reason that is not in the mail.
        """
        if self._closing.is_set():
            raise RelayUnavailable("this mailer is stopping")
        try:
            verdict = await relay.send(mail, lane)
        except RelayUnavailable as error:
            relay.breaker.failed(str(error))
            self._probe_if_open(relay)
            raise
        relay.observe(verdict, mail.domain)
        if verdict.kind is not Kind.SENT:
            self._probe_if_open(relay)
        return verdict

    def _probe_if_open(self, relay: Relay) -> None:
        name = f"probing the relay {relay.settings.name}"
        if relay.breaker.closed or self._probing.running(name) or self._closing.is_set():
            return
        self._probing.keep(name, partial(self._probe, relay))

    async def _probe(self, relay: Relay) -> None:
        """Probe the relay with exponential back-off until it answers. Only an accepted mail resets the interval."""
        while not relay.breaker.closed:
            await asyncio.sleep(random.uniform(0.5, 1.0) * relay.probe_interval)
            relay.probe_interval = min(2 * relay.probe_interval, MAX_PROBE_INTERVAL_SECONDS)
            with suppress(RelayUnavailable):
                await relay.transport.probe()
                relay.breaker.half_open()

    async def sweep(self) -> None:
        """Close idle connections."""
        for relay in self._relays:
            relay.transport.sweep()

    def stop_waiting(self) -> None:
        """End all waits for a usable relay, because this process stops."""
        self._closing.set()
        self._recovered.set()

    async def close(self) -> None:
        """Close all connections that carry no mail."""
        self.stop_waiting()
        await self._probing.stop()
        for relay in self._relays:
            await relay.transport.close()


def _transport(settings: AnyRelay, hello: str) -> Transport:
    return SendGrid(settings) if isinstance(settings, SendGridRelay) else Smtp(settings, hello)
