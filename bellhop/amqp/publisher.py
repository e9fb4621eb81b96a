"""Publish with confirms: `publish` returns when the broker has taken responsibility for the message.

Every message is mandatory (so that an unroutable one is returned), persistent, and confirmed
(https://www.rabbitmq.com/docs/confirms). Up to a window of messages may be unconfirmed concurrently: waiting for each
confirm before the next publish reaches about 1,000 a second, a window of a thousand reaches the broker's own limit.
"""

import asyncio
import os
from collections import Counter, OrderedDict
from itertools import count
from typing import Any, NamedTuple

import pika
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.spec import Basic

from bellhop import faults
from bellhop.amqp import spans
from bellhop.amqp.connection import Connection
from bellhop.amqp.errors import BrokerUnavailable, PublishError, Refused, Unconfirmed, Unroutable
from bellhop.amqp.message import Message, to_headers
from bellhop.observe import traces

_SWEEP_SECONDS = 0.2


class _Outstanding(NamedTuple):
    future: "asyncio.Future[None]"
    message_id: str
    deadline: float
    route: tuple[str, str]


class Publisher:
    """One confirm channel. Use a connection on which nothing is consumed: alarms block connections that publish."""

    def __init__(self, connection: Connection, *, window: int = 1000, timeout: float = 5.0) -> None:
        """`window`: unconfirmed messages at most. `timeout`: seconds that one publish may take in all."""
        self._connection = connection
        self._room = asyncio.Semaphore(window)
        self._timeout = timeout
        self._channel: Channel | None = None
        # Messages without a confirm, by delivery tag, oldest first. One that timed out stays until the broker answers
        # or the channel closes, but no longer counts towards the window.
        # An OrderedDict: finding the first key of a dict takes time for each key that was deleted before it.
        self._outstanding: OrderedDict[int, _Outstanding] = OrderedDict()
        self._returned: set[str] = set()
        # How many confirms are overdue, by route; and up to which tag that was counted.
        self._overdue: Counter[tuple[str, str]] = Counter()
        self._overdue_until = 0
        self._last_answer = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        # Returns are matched by message id, so two publishes must never share one, not even of one event.
        self._message_ids = (f"{prefix}-{n}" for prefix in [os.urandom(8).hex()] for n in count(1))
        self._tag = 0
        connection.add(self)

    @property
    def unconfirmed(self) -> int:
        """Return how many messages have neither an ack nor a nack."""
        return len(self._outstanding)

    @property
    def connected(self) -> bool:
        """Return whether there is an open channel that is not blocked."""
        return self._channel is not None and self._connection.usable

    @property
    def failure(self) -> str | None:
        """Return a sentence that says why publishing cannot succeed at the moment; None if it can."""
        if self._channel is None or not self._connection.usable:
            explanation = self._connection.explanation
            return explanation if explanation != "ok" else "the channel to RabbitMQ is being opened"
        if len(self._overdue) > 1 and self._stalled():
            return f"RabbitMQ has confirmed nothing for {self._timeout:g} s"
        return None

    def failure_of(self, exchange: str, routing_key: str) -> str | None:
        """Return a sentence that says why publishing to this route cannot succeed at the moment; None if it can.

        A queue that confirms nothing (its nodes have no majority, for example) must not stop messages for others. The
        failure ends with the first overdue confirm, or with a new channel.
        """
        if (exchange, routing_key) in self._overdue:
            return f"RabbitMQ has confirmed nothing for {routing_key or exchange!r} for {self._timeout:g} s"
        return self.failure

    async def publish(self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True) -> None:
        """Publish, and return when the broker has confirmed. After a cancellation the message may have been published.

        Without `mandatory` the broker also confirms a message for which no queue is bound: for optional copies.

        Raises:
            BrokerUnavailable: not sent.
            Refused: a queue is full.
            Unroutable: no binding matches.
            Unconfirmed: sent, and not confirmed in time: the broker may have it.
        """
        await (await self.begin(exchange, routing_key, message, mandatory=mandatory))

    async def begin(
        self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True
    ) -> "asyncio.Future[None]":
        """Send when the window has room, and return a future that ends with the confirm, or raises as `publish` does.

        For callers with many messages: a future costs less than a task for each.
        """
        if (failure := self.failure_of(exchange, routing_key)) is not None:
            raise BrokerUnavailable(failure)
        if self._room.locked():
            await self._wait_for_room()
        else:
            await self._room.acquire()  # does not yield: there is room
        send = self._send if mandatory else self._send_copy
        if traces.tracer is not None:
            return spans.publishing(traces.tracer, send, exchange, routing_key, message)
        return send(exchange, routing_key, message)

    async def _wait_for_room(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._room.acquire()
        except TimeoutError:
            raise BrokerUnavailable(f"RabbitMQ is {self.unconfirmed} confirms behind") from None
        if (failure := self.failure) is not None:
            self._room.release()
            raise BrokerUnavailable(failure)

    def _send_copy(self, exchange: str, routing_key: str, message: Message) -> "asyncio.Future[None]":
        return self._send(exchange, routing_key, message, mandatory=False)

    def _send(
        self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True
    ) -> "asyncio.Future[None]":
        loop = asyncio.get_running_loop()
        message_id = next(self._message_ids)
        envelope = message.envelope
        properties = pika.BasicProperties(  # type: ignore[no-untyped-call]
            message_id=message_id,
            type=_short(envelope.type),
            app_id=_short(envelope.source),
            timestamp=max(
                0, int(envelope.time.timestamp())
            ),  # AMQP has no time before 1970; the header has the exact time
            content_type="application/json",
            delivery_mode=2,
            headers=to_headers(message),
            expiration=None if message.expiration_ms is None else str(message.expiration_ms),
        )
        assert self._channel is not None
        faults.point("publisher.before_write")
        try:
            self._channel.basic_publish(exchange, routing_key, message.body, properties, mandatory=mandatory)
        except AMQPError as error:
            self._room.release()
            raise BrokerUnavailable(f"RabbitMQ's channel is closing: {error}") from error
        except Exception:
            self._room.release()
            raise
        faults.point_when_written("publisher.after_write")
        self._tag += 1
        future: asyncio.Future[None] = loop.create_future()
        self._outstanding[self._tag] = _Outstanding(
            future, message_id, loop.time() + self._timeout, (exchange, routing_key)
        )
        if self._sweeper is None:
            self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)
        return future

    def _stalled(self) -> bool:
        if not self._outstanding:
            return False
        now = asyncio.get_running_loop().time()
        overdue = next(iter(self._outstanding.values())).deadline < now
        return overdue and now - self._last_answer > self._timeout

    def _sweep(self) -> None:
        """Fail overdue messages. One timer for all costs less than a timer for each."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for tag, outstanding in self._outstanding.items():
            if outstanding.deadline > now:
                break
            if tag > self._overdue_until:
                self._overdue_until = tag
                self._overdue[outstanding.route] += 1
                self._room.release()  # `_stalled` stops this route, so other routes may use the room
                _fail(outstanding, Unconfirmed(f"RabbitMQ did not confirm within {self._timeout:g} s"))
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep) if self._outstanding else None

    # Called by the connection.

    def opened(self, channel: Channel) -> None:
        """Select confirm mode; the channel is used after the broker's answer."""

        def selected(_frame: object) -> None:
            self._tag = 0
            self._channel = channel

        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=selected)

    def closed(self, reason: str) -> None:
        """Fail all unconfirmed messages: the broker may have them or not."""
        self._channel = None
        self._returned.clear()
        outstanding, self._outstanding = self._outstanding, OrderedDict()
        for tag, one in outstanding.items():
            if tag > self._overdue_until:
                self._room.release()
            _fail(one, Unconfirmed(f"the connection to RabbitMQ was lost before the confirm: {reason}"))
        self._overdue.clear()
        self._overdue_until = 0

    def _on_return(self, _channel: Channel, _method: Basic.Return, properties: Any, _body: bytes) -> None:
        self._returned.add(properties.message_id)

    def _on_confirm(self, frame: Any) -> None:
        answer: Basic.Ack | Basic.Nack = frame.method
        self._last_answer = asyncio.get_running_loop().time()
        if not answer.multiple:
            self._settle(answer.delivery_tag, answer)
            return
        while self._outstanding and (tag := next(iter(self._outstanding))) <= answer.delivery_tag:
            self._settle(tag, answer)

    def _settle(self, tag: int, answer: "Basic.Ack | Basic.Nack") -> None:
        one = self._outstanding.pop(tag)
        exchange, routing_key = one.route
        if tag > self._overdue_until:
            self._room.release()
        else:
            self._overdue -= Counter([one.route])  # drops routes whose count is 0
        if one.message_id in self._returned:  # a return always comes before its own confirm
            self._returned.discard(one.message_id)
            _fail(one, Unroutable(f"nothing is bound to exchange {exchange!r} for routing key {routing_key!r}"))
        elif isinstance(answer, Basic.Nack):
            _fail(one, Refused(f"RabbitMQ refused the message for {routing_key!r}: a queue is full"))
        elif not one.future.done():
            faults.point("publisher.after_confirm")
            one.future.set_result(None)


def _short(text: str) -> str:
    """Cut a text to the 255 bytes of a short string (AMQP 0-9-1, 4.2.5.3); the headers have the full text."""
    return text if len(text) < 64 else text.encode()[:255].decode(errors="ignore")


def _fail(outstanding: _Outstanding, error: PublishError) -> None:
    if not outstanding.future.done():
        outstanding.future.set_exception(error)
        outstanding.future.exception()  # mark the exception as retrieved: the waiter may have been cancelled
