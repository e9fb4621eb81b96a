"""The relays: which one takes a mail, and what happens when it does not.

Relays of the lowest priority number share the mails by weight; those of the next are for when none of these works.
Trouble with a relay is no fault of any mail: it costs no attempt. After a few failures in a row (no connection, no
login, silence, a connection that breaks, a refusal of us rather than of a recipient) its breaker opens: it gets no
mail, while one connection at a time tries whether it is back. What it certainly has not taken goes to the next relay
at once. What it may have taken, because it fell silent after the final dot, never does: that is reported as uncertain
and comes again as another attempt.
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

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
PATIENCE = 600.0
"""Seconds that a delivery waits for its turn, or for a relay, before it goes back to its queue. Together they are well
under RabbitMQ's consumer timeout of 30 minutes; and going back often would count against the message on RabbitMQ
before 4.0, where the delivery limit of a quorum queue includes it."""
REFUSING_DOMAINS = 3
"""A policy refusal is about the recipient's domain, until the mails to so many domains in a row met one."""
UNKNOWN_ADDRESSES = 20
UNKNOWN_DOMAINS = 5
"""So many unknown addresses in a row, in so many domains, mean that the relay is wrong, not the addresses: a relay that
answers "no such user" to everything must not suppress a whole list."""

log = get_logger(__name__)


class Relay:
    """One relay: the way to it, who may use it at once, and whether it works."""

    def __init__(self, settings: AnyRelay, transport: Transport, back: Callable[[], None]) -> None:
        """`back` is called when the relay works again."""
        self.settings = settings
        self._back = back
        self.transport = transport
        self.lanes = Lanes(settings.connections)
        self.breaker = Breaker(self._opened, self._closed)
        self.pause = FIRST_PAUSE
        self.refusing: set[str] = set()
        """The domains to which it refused mail, for reasons of policy, since it last took any."""
        self.unknown: list[str] = []
        """The domains of the addresses that it did not know since it last took a mail."""

    @property
    def where(self) -> str:
        """Return what to call it in a sentence."""
        return self.transport.where

    def _opened(self) -> None:
        log.warning("no mail goes to a relay until it works again", relay=self.where, reason=self.breaker.failure)
        metrics.RELAY_UP.labels(self.settings.name).set(0)

    def _closed(self) -> None:
        log.info("a relay takes mail again", relay=self.where)
        metrics.RELAY_UP.labels(self.settings.name).set(1)
        self._back()

    async def send(self, mail: Outgoing, lane: Lane) -> Verdict:
        """Wait for the lane's turn, and send."""
        if not self.lanes.try_enter(lane):
            await self._wait_for_turn(lane)
        try:
            if self.breaker.failure is not None:
                raise RelayUnavailable(self.breaker.failure)
            return await self.transport.send(mail)
        finally:
            self.lanes.leave(lane)

    async def _wait_for_turn(self, lane: Lane) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self.lanes.enter(lane)
        except TimeoutError:
            raise RelayUnavailable(f"waited {PATIENCE:g} s for a connection to the relay {self.where}") from None

    def heard(self, verdict: Verdict, domain: str) -> None:
        """Learn from what became of a mail to `domain`."""
        if verdict.kind is Kind.SENT:
            self.pause = FIRST_PAUSE
            self.refusing.clear()
            self.unknown.clear()
            self.breaker.succeeded()
        elif verdict.cause is Cause.RELAY:
            self.breaker.failed(verdict.sentence)
        elif verdict.cause is Cause.POLICY:
            self.refusing.add(domain)
            if len(self.refusing) >= REFUSING_DOMAINS:
                self.refusing.clear()
                self.breaker.open(f"the relay {self.where} refuses mail to every domain: {verdict.sentence}")
        elif verdict.cause is Cause.BAD_ADDRESS:
            self.unknown.append(domain)
            if len(self.unknown) >= UNKNOWN_ADDRESSES and len(set(self.unknown)) >= UNKNOWN_DOMAINS:
                self.unknown.clear()
                self.breaker.open(f"the relay {self.where} knows no recipient: {verdict.sentence}")


class Relays:
    """All of them."""

    def __init__(self, relays: Sequence[AnyRelay], hello: str) -> None:
        """`hello`: the name that we give in EHLO."""
        self._closing = asyncio.Event()
        self._back = asyncio.Event()  # set whenever a relay comes back
        self._relays = [Relay(settings, _transport(settings, hello), self._back.set) for settings in relays]
        self._probing = Background()
        for relay in self._relays:
            metrics.RELAY_UP.labels(relay.settings.name).set(1)
            metrics.FAILOVERS.labels(relay.settings.name)

    @property
    def failure(self) -> str | None:
        """Return as a sentence why no mail can go out; None when it can."""
        troubles = [relay.breaker.failure for relay in self._relays if relay.breaker.failure is not None]
        return "; ".join(troubles) if len(troubles) == len(self._relays) else None

    @property
    def troubles(self) -> dict[str, str]:
        """Return for each relay "ok", or why it gets no mail."""
        return {relay.settings.name: relay.breaker.failure or "ok" for relay in self._relays}

    @property
    def busy(self) -> int:
        """Return how many mails are on their way right now."""
        return sum(relay.lanes.busy for relay in self._relays)

    async def usable(self) -> list[Relay]:
        """Return the relays that work, in the order in which to try them; wait until there is one.

        Raises:
            RelayUnavailable: there is none, and waiting longer makes no sense.
        """
        if found := self._order():
            return found
        try:
            async with asyncio.timeout(PATIENCE):
                while not (found := self._order()):
                    if self._closing.is_set():
                        raise RelayUnavailable(self.failure or "this mailer is ending")
                    self._back.clear()
                    await self._back.wait()
        except TimeoutError:
            raise RelayUnavailable(self.failure or "no relay works") from None
        return found

    def _order(self) -> list[Relay]:
        if len(self._relays) == 1:
            return self._relays if self._relays[0].breaker.closed else []
        working = [relay for relay in self._relays if relay.breaker.closed]
        # Weighted order: an exponential clock for each, the first to ring goes first.
        return sorted(
            working, key=lambda relay: (relay.settings.priority, random.expovariate(1.0) / relay.settings.weight)
        )

    async def send(self, relay: Relay, mail: Outgoing, lane: Lane) -> Verdict:
        """Send by one relay, and learn from what becomes of it.

        Raises:
            RelayUnavailable: it was not sent, and not for its own fault.
        """
        if self._closing.is_set():
            raise RelayUnavailable("this mailer is ending")
        try:
            verdict = await relay.send(mail, lane)
        except RelayUnavailable as error:
            relay.breaker.failed(str(error))
            self._probe_if_open(relay)
            raise
        relay.heard(verdict, mail.domain)
        if verdict.kind is not Kind.SENT:
            self._probe_if_open(relay)
        return verdict

    def _probe_if_open(self, relay: Relay) -> None:
        name = f"probing the relay {relay.settings.name}"
        if relay.breaker.closed or self._probing.running(name) or self._closing.is_set():
            return
        self._probing.keep(name, partial(self._probe, relay))

    async def _probe(self, relay: Relay) -> None:
        """Try until the relay is back, less and less often. Only a mail that it takes makes the pauses short again."""
        while not relay.breaker.closed:
            await asyncio.sleep(random.uniform(0.5, 1.0) * relay.pause)
            relay.pause = min(2 * relay.pause, LONGEST_PAUSE)
            with suppress(RelayUnavailable):
                await relay.transport.probe()
                relay.breaker.half_open()

    async def sweep(self) -> None:
        """Close connections that were not used for a while."""
        for relay in self._relays:
            relay.transport.sweep()

    def give_up(self) -> None:
        """Wait for absent relays no longer: this process is to end."""
        self._closing.set()
        self._back.set()

    async def close(self) -> None:
        """Close all connections that carry no mail."""
        self.give_up()
        await self._probing.stop()
        for relay in self._relays:
            await relay.transport.close()


def _transport(settings: AnyRelay, hello: str) -> Transport:
    return SendGrid(settings) if isinstance(settings, SendGridRelay) else Smtp(settings, hello)
