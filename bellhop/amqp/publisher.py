"""Publish with a promise: `publish` returns when the broker has taken responsibility for the message.

Every message is mandatory (so that an unroutable one comes back), persistent, and confirmed
(https://www.rabbitmq.com/docs/confirms). Many may be on their way at once: waiting for each confirm before the next
publish reaches about 1,000 a second, a window of a thousand reaches the broker's own limit.
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
    """One confirm channel. Give it a connection on which nothing is consumed: alarms stop publishing connections."""

    def __init__(self, connection: Connection, *, window: int = 1000, timeout: float = 5.0) -> None:
        """`window`: unconfirmed messages at most. `timeout`: seconds that one publish may take in all."""
        self._connection = connection
        self._room = asyncio.Semaphore(window)
        self._timeout = timeout
        self._channel: Channel | None = None
        # What the broker owes us, by delivery tag, oldest first. One that timed out stays until the broker answers or
        # the channel closes, but takes no place in the window any more.
        # An OrderedDict, because to find its first entry a dict walks over all that it lost at its front.
        self._outstanding: OrderedDict[int, _Outstanding] = OrderedDict()
        self._returned: set[str] = set()
        # Where confirms are overdue, and how many. Up to which tag that was counted.
        self._overdue: Counter[tuple[str, str]] = Counter()
        self._overdue_until = 0
        self._last_answer = 0.0
        self._sweeper: asyncio.TimerHandle | None = None
        # Brokers' returns are matched by message id, so two publishes must never share one, not even of one event.
        self._message_ids = (f"{prefix}-{n}" for prefix in [os.urandom(8).hex()] for n in count(1))
        self._tag = 0
        connection.add(self)

    @property
    def unconfirmed(self) -> int:
        """Return how many messages the broker has not answered yet."""
        return len(self._outstanding)

    @property
    def connected(self) -> bool:
        """Say whether there is a channel on which RabbitMQ takes messages at the moment."""
        return self._channel is not None and self._connection.usable

    @property
    def failure(self) -> str | None:
        """Return as a sentence why publishing is hopeless at the moment; None when it is not."""
        if self._channel is None or not self._connection.usable:
            explanation = self._connection.explanation
            return explanation if explanation != "ok" else "the channel to RabbitMQ is being opened"
        if len(self._overdue) > 1 and self._stalled():
            return f"RabbitMQ has confirmed nothing for {self._timeout:g} s"
        return None

    def failure_of(self, exchange: str, routing_key: str) -> str | None:
        """Return as a sentence why publishing there is hopeless at the moment; None when it is not.

        A queue that confirms nothing (its nodes have no majority, for example) must not stop messages for others. Its
        confirms are still due, so the first of them, or a new channel, ends the failure.
        """
        if (exchange, routing_key) in self._overdue:
            return f"RabbitMQ has confirmed nothing for {routing_key or exchange!r} for {self._timeout:g} s"
        return self.failure

    async def publish(self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True) -> None:
        """Publish and return once the broker confirmed.

        Without `mandatory` it is also confirmed where no queue is bound: for copies that nobody needs to receive.

        Raises:
            BrokerUnavailable: not sent.
            Refused: a queue is full.
            Unroutable: no binding matches.
            Unconfirmed: sent, but its fate is unknown.
        """
        await (await self.begin(exchange, routing_key, message, mandatory=mandatory))

    async def begin(
        self, exchange: str, routing_key: str, message: Message, *, mandatory: bool = True
    ) -> "asyncio.Future[None]":
        """Send, once there is room in the window, and return what will tell the confirm or raise as `publish` does.

        For whoever has many messages: a future costs less than a task for each.
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
            timestamp=max(0, int(envelope.time.timestamp())),  # AMQP knows no time before 1970; the header has it whole
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
        """Fail what is overdue. One timer for all costs less than a timer for each."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for tag, outstanding in self._outstanding.items():
            if outstanding.deadline > now:
                break
            if tag > self._overdue_until:
                self._overdue_until = tag
                self._overdue[outstanding.route] += 1
                self._room.release()  # no more goes where nothing is confirmed, so it need not keep others out
                _fail(outstanding, Unconfirmed(f"RabbitMQ did not confirm within {self._timeout:g} s"))
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep) if self._outstanding else None

    # The channel's life, called by the connection.

    def opened(self, channel: Channel) -> None:
        """Turn confirms on; the channel is used from the broker's answer on."""

        def selected(_frame: object) -> None:
            self._tag = 0
            self._channel = channel

        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=selected)

    def closed(self, reason: str) -> None:
        """Everything that was on its way has an unknown fate."""
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
            self._overdue -= Counter([one.route])  # keeps counts above 0 alone
        if one.message_id in self._returned:  # a return always comes before its own confirm
            self._returned.discard(one.message_id)
            _fail(one, Unroutable(f"nothing is bound to exchange {exchange!r} for routing key {routing_key!r}"))
        elif isinstance(answer, Basic.Nack):
            _fail(one, Refused(f"RabbitMQ refused the message for {routing_key!r}: a queue is full"))
        elif not one.future.done():
            faults.point("publisher.after_confirm")
            one.future.set_result(None)


def _short(text: str) -> str:
    """Cut a text to the 255 bytes of a short string (AMQP 0-9-1, 4.2.5.3); the headers have it whole."""
    return text if len(text) < 64 else text.encode()[:255].decode(errors="ignore")


def _fail(outstanding: _Outstanding, error: PublishError) -> None:
    if not outstanding.future.done():
        outstanding.future.set_exception(error)
        outstanding.future.exception()  # seen: whoever waited may be gone
