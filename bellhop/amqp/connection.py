"""One supervised connection to the broker.

pika does not reconnect. This module does: back-off with jitter, one log line for each change of state, a blocked state
that callers can read, and one code path that opens channels, for the first connection and for every later one.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Protocol

import pika
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel
from pika.exceptions import ChannelWrongStateError, ConnectionWrongStateError

from bellhop.amqp.topology import PROPERTY, VERSION
from bellhop.amqp.urls import split_urls
from bellhop.background import Background
from bellhop.observe.logs import get_logger

HEARTBEAT_SECONDS = 10
"""A dead peer is noticed after two missed heartbeats; RabbitMQ's default of 60 s is too long to answer 503 quickly."""

MAX_BACK_OFF_SECONDS = 10.0

log = get_logger(__name__)


class Link(Protocol):
    """User of one channel: a publisher or a consumer."""

    def opened(self, channel: Channel) -> None:
        """Take a new channel. Called again after each reconnect; the previous channel is closed by then."""

    def closed(self, reason: str) -> None:
        """Drop the channel: it is closed, and its delivery tags are invalid."""


class Connection:
    """A connection that reconnects until `close`."""

    def __init__(self, url: str, name: str) -> None:
        """`url` is an amqp:// or amqps:// URL, or several with commas between them: the nodes of one cluster.

        They are tried in turn, beginning with the first. `name` is what the management UI shows.
        """
        self._nodes = [_parameters(one, name) for one in split_urls(url)]
        self._turn = 0
        self._name = name
        self._links: list[Link] = []
        self._pika: AsyncioConnection | None = None
        self._open = asyncio.Event()
        self._blocked: str | None = None
        self._lost = ""
        self._stopping = False
        self._started = False
        self._background = Background()
        self._back_offs: set[asyncio.TimerHandle] = set()

    @property
    def usable(self) -> bool:
        """Return whether messages can be published: open, and not blocked by a resource alarm."""
        return self._open.is_set() and self._blocked is None

    @property
    def status(self) -> str:
        """Return 'closed', 'connecting', 'blocked' or 'open'."""
        if not self._started:
            return "closed"
        if not self._open.is_set():
            return "connecting"
        return "open" if self._blocked is None else "blocked"

    @property
    def explanation(self) -> str:
        """Return 'ok', or a sentence that says why nothing can be published or consumed."""
        if self.status == "blocked":
            return f"RabbitMQ blocks publishers: {self._blocked}"
        if (failure := self._background.failure) is not None:
            return failure
        if self.status == "open":
            return "ok"
        where = " or ".join(f"{node.host}:{node.port}" for node in self._nodes)
        why = f" ({self._lost})" if self._lost else ""
        return f"no connection to RabbitMQ at {where}, virtual host {self._nodes[0].virtual_host}{why}"

    @property
    def _where(self) -> str:
        node = self._nodes[self._turn]
        return f"{node.host}:{node.port}, virtual host {node.virtual_host}"

    async def start(self) -> None:
        """Begin to connect. Returns immediately; connecting is retried without limit. Idempotent."""
        if not self._started:
            self._started = True
            self._background.keep(f"connection {self._name}", self._supervise)

    async def close(self) -> None:
        """Close the connection; the broker requeues unacked deliveries. Takes up to 3 s."""
        self._stopping = True
        for timer in self._back_offs:
            timer.cancel()
        timeout = 0.0
        if self._pika is not None and self._pika.is_open:
            self._pika.close()
            timeout = 3.0
        await self._background.stop(timeout)
        self._started = False

    async def wait_open(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; return whether the connection is open. Cancel-safe."""
        try:
            async with asyncio.timeout(timeout):
                await self._open.wait()
        except TimeoutError:
            return False
        return True

    def add(self, link: Link) -> None:
        """Open a channel for `link` now, if the connection is open, and after every reconnect."""
        self._links.append(link)
        if self._pika is not None and self._open.is_set():
            self._open_channel(self._pika, link)

    def remove(self, link: Link) -> None:
        """Open no further channel for `link`. Idempotent."""
        if link in self._links:
            self._links.remove(link)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping:
            began = loop.time()
            lost: asyncio.Future[str] = loop.create_future()
            self._pika = connection = self._connect(lost)
            try:
                reason = self._lost = await lost
            except asyncio.CancelledError:
                _abandon(connection)
                raise
            was_open, self._blocked = self._open.is_set(), None
            self._open.clear()
            if self._stopping:
                return
            if was_open:
                log.warning("lost the connection to RabbitMQ; connecting again", broker=self._where, reason=reason)
            elif failures == 0:
                log.warning("cannot reach RabbitMQ; trying until it answers", broker=self._where, reason=reason)
            # Try the other nodes before this one.
            self._turn = (self._turn + 1) % len(self._nodes)
            # Reset the back-off only after 30 s of uptime: otherwise a connect/reset loop would retry without delay.
            failures = 0 if was_open and loop.time() - began > 30 else failures + 1
            # Full jitter, so that replicas do not reconnect together, and at most one attempt a second.
            await asyncio.sleep(random.uniform(1.0, max(1.0, min(MAX_BACK_OFF_SECONDS, 2.0 ** (failures - 1)))))

    def _connect(self, lost: "asyncio.Future[str]") -> AsyncioConnection:
        def end(_connection: object, error: BaseException) -> None:
            if not lost.done():
                lost.set_result(_sentence(error))

        def opened(connection: AsyncioConnection) -> None:
            log.info("connected to RabbitMQ", broker=self._where)
            self._open.set()
            connection.add_on_connection_blocked_callback(self._on_blocked)
            connection.add_on_connection_unblocked_callback(self._on_unblocked)
            for link in self._links:
                self._open_channel(connection, link)

        return AsyncioConnection(
            self._nodes[self._turn],
            on_open_callback=opened,
            on_open_error_callback=end,
            on_close_callback=end,
            custom_ioloop=asyncio.get_running_loop(),
        )

    def _open_channel(self, connection: AsyncioConnection, link: Link, failures: int = 0) -> None:
        def on_open(channel: Channel) -> None:
            link.opened(channel)

        def on_close(_channel: Channel, error: Exception) -> None:
            reason = _sentence(error)
            link.closed(reason)
            if connection.is_open and link in self._links and not self._stopping:
                # The broker closed only this channel (a queue is missing, a right was revoked): open another later.
                log.warning("RabbitMQ closed a channel; opening another", connection=self._name, reason=reason)
                self._later(min(MAX_BACK_OFF_SECONDS, 2.0**failures), again)

        def again() -> None:
            if connection.is_open and link in self._links:
                self._open_channel(connection, link, failures + 1)

        channel = connection.channel(on_open_callback=on_open)
        channel.add_on_close_callback(on_close)

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        def act() -> None:
            self._back_offs.discard(timer)
            action()

        timer = asyncio.get_running_loop().call_later(seconds, act)
        self._back_offs.add(timer)

    def _on_blocked(self, _connection: object, frame: object) -> None:
        self._blocked = str(getattr(getattr(frame, "method", None), "reason", "")) or "resource alarm"
        log.warning("RabbitMQ blocks publishers until its alarm clears", reason=self._blocked)

    def _on_unblocked(self, _connection: object, _frame: object) -> None:
        self._blocked = None
        log.info("RabbitMQ accepts messages again")


def _parameters(url: str, name: str) -> pika.URLParameters:
    parameters = pika.URLParameters(url)
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = 5
    parameters.stack_timeout = 10
    parameters.connection_attempts = 1
    parameters.client_properties = {"connection_name": name, "product": "Bellhop", PROPERTY: VERSION}
    return parameters


def _abandon(connection: AsyncioConnection) -> None:
    """Close a connection without waiting for the broker's answer."""
    try:
        connection.close()
    except (ConnectionWrongStateError, ChannelWrongStateError):
        return


def _sentence(error: BaseException) -> str:
    """Return the innermost reason; pika wraps a refused TCP connection four layers deep."""
    while True:
        inner = getattr(error, "exceptions", None) or getattr(error, "exception", None) or error.args[:1]
        if isinstance(inner, (list, tuple)):
            inner = inner[-1] if inner else None
        if not isinstance(inner, BaseException):
            break
        error = inner
    reply = getattr(error, "reply_text", None)
    return str(reply) if reply else str(error) or type(error).__name__
