"""Least privilege: what each service may do with RabbitMQ, and that the broker refuses everything else.

What is allowed stands here once more, in plain words, and not as patterns: a pattern that matches too much shows.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import aio_pika
import httpx
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aiormq.exceptions import ChannelAccessRefused

from bellhop.amqp.topology import EXCHANGES, QUEUES, RIGHTS
from tests.support.broker import Vhost

RETRIES = {"retry.5s", "retry.30s", "retry.2m", "retry.10m", "retry.1h", "retry.6h"}


@dataclass(frozen=True)
class Allowed:
    """The exchanges that a service publishes to, the queues that it reads, and where it binds."""

    publishes: frozenset[str]
    reads: frozenset[str]
    binds: frozenset[tuple[str, str]] = frozenset()


ALLOWED = {
    "gateway": Allowed(
        publishes=frozenset({"events", "notifications", "work", "unrouted", "dead"} | RETRIES),
        reads=frozenset({"gateway.outcomes", "gateway.announcements", "dead-letters", "unrouted"}),
        # RabbitMQ's rights know names, not kinds: whoever reads the queue `unrouted` may bind to its exchange.
        binds=frozenset(("unrouted", queue) for queue in {"unrouted"} | RETRIES),
    ),
    "mailer": Allowed(
        publishes=frozenset({"work", "outcomes", "dead"} | RETRIES),
        reads=frozenset({"mail.urgent", "mail.normal", "mail.bulk", "mail.cancel", "mailer.reactions"}),
    ),
    "notifier": Allowed(publishes=frozenset(), reads=frozenset({"notifier.log"})),
    "leaderboard": Allowed(
        publishes=frozenset({"notifications", "dead"} | RETRIES), reads=frozenset({"leaderboard.scores"})
    ),
}

Operation = Callable[[AbstractChannel], Awaitable[object]]


class User:
    """One service's user on a virtual host of its own, with the rights of `RIGHTS`."""

    def __init__(self, vhost: Vhost, service: str) -> None:
        self.service = service
        self.name = f"{service}-{vhost.name}"
        self.password = secrets.token_urlsafe(16)
        self._vhost = vhost
        self._connection: AbstractConnection | None = None

    async def create(self) -> None:
        rights = RIGHTS[self.service]
        management = self._vhost.management
        made = await management.put(f"/api/users/{self.name}", json={"password": self.password, "tags": rights.tags})
        assert made.is_success
        granted = await management.put(
            f"/api/permissions/{self._vhost.name}/{self.name}",
            json={"configure": rights.configure, "write": rights.write, "read": rights.read},
        )
        assert granted.is_success
        broker = self._vhost.broker
        self._connection = await aio_pika.connect(
            f"amqp://{self.name}:{self.password}@{broker.host}:{broker.amqp_port}/{self._vhost.name}"
        )

    async def delete(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        await self._vhost.management.delete(f"/api/users/{self.name}")

    async def may(self, operation: Operation) -> bool:
        """Try; say whether RabbitMQ let us, or answered ACCESS_REFUSED (403)."""
        assert self._connection is not None
        channel = await self._connection.channel()
        try:
            await operation(channel)
        except ChannelAccessRefused:
            return False
        else:
            await channel.close()
            return True


@pytest.fixture(params=sorted(RIGHTS))
async def user(request: pytest.FixtureRequest, vhost: Vhost) -> AsyncIterator[User]:
    user = User(vhost, request.param)
    await user.create()
    yield user
    await user.delete()


async def publish(exchange: str, channel: AbstractChannel) -> None:
    target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
    await target.publish(aio_pika.Message(b"{}"), "nobody.binds.this", mandatory=False)


async def ignore(message: AbstractIncomingMessage) -> None:
    """Not settled: it goes back when the channel closes."""


async def consume(queue: str, channel: AbstractChannel) -> None:
    await channel.set_qos(prefetch_count=1)
    source = await channel.get_queue(queue, ensure=False)
    await source.consume(ignore)


async def purge(queue: str, channel: AbstractChannel) -> None:
    await (await channel.get_queue(queue, ensure=False)).purge()


async def bind(exchange: str, queue: str, channel: AbstractChannel) -> None:
    await (await channel.get_queue(queue, ensure=False)).bind(exchange, "order.placed")


async def delete_queue(queue: str, channel: AbstractChannel) -> None:
    await channel.queue_delete(queue)


async def delete_exchange(exchange: str, channel: AbstractChannel) -> None:
    await channel.exchange_delete(exchange)


async def declare_queue(name: str, channel: AbstractChannel) -> None:
    await channel.declare_queue(name, durable=True)


async def declare_exchange(name: str, channel: AbstractChannel) -> None:
    await channel.declare_exchange(name, durable=True)


async def test_it_publishes_to_its_exchanges_and_to_no_other(user: User) -> None:
    """The default exchange is one of the others: through it, every queue could be written to."""
    exchanges = ["", "amq.topic", *(exchange.name for exchange in EXCHANGES)]
    allowed = {name for name in exchanges if await user.may(partial(publish, name))}
    assert allowed == ALLOWED[user.service].publishes


async def test_it_consumes_from_its_queues_and_from_no_other(user: User) -> None:
    """Nobody reads another's mail, nor the dead letters but the gateway."""
    allowed = {queue.name for queue in QUEUES if await user.may(partial(consume, queue.name))}
    assert allowed == ALLOWED[user.service].reads


async def test_it_empties_no_queue_of_another(user: User) -> None:
    """Purging is reading, in RabbitMQ's eyes: whoever consumes from a queue could empty it anyway."""
    queues = [queue.name for queue in QUEUES if queue.type != "stream"]
    allowed = {name for name in queues if await user.may(partial(purge, name))}
    assert allowed == ALLOWED[user.service].reads - {"notifier.log"}


async def test_it_binds_nothing_but_what_is_its_own(user: User) -> None:
    """No service binds: what reaches a queue of ours is the table's business alone."""
    pairs = [(exchange.name, queue.name) for exchange in EXCHANGES for queue in QUEUES]
    allowed = {pair for pair in pairs if await user.may(partial(bind, *pair))}
    assert allowed == ALLOWED[user.service].binds


async def test_it_makes_and_deletes_nothing(user: User) -> None:
    """Topology is for the deploy step: a service that is taken over cannot take it apart."""
    operations = [
        partial(declare_queue, "mine"),
        partial(declare_exchange, "mine"),
        partial(declare_queue, f"{user.service}.mine"),
        *(partial(delete_queue, queue.name) for queue in QUEUES),
        *(partial(delete_exchange, exchange.name) for exchange in EXCHANGES),
    ]
    assert not [operation for operation in operations if await user.may(operation)]


async def test_it_administers_nothing(user: User, vhost: Vhost) -> None:
    """The gateway may look at queues and connections, the others not even that; none may change anything."""
    broker = vhost.broker
    async with httpx.AsyncClient(
        base_url=f"http://{broker.host}:{broker.management_port}",
        auth=(user.name, user.password),
        trust_env=False,
        timeout=10,
    ) as management:
        looked = await management.get(f"/api/queues/{vhost.name}")
        assert looked.status_code == (200 if user.service == "gateway" else 401)
        attempts = [
            await management.put(f"/api/users/{user.name}", json={"password": "x", "tags": "administrator"}),
            await management.put(f"/api/permissions/{vhost.name}/{user.name}", json={"configure": ".*"}),
            await management.get("/api/definitions"),
            await management.put(f"/api/policies/{vhost.name}/mine", json={"pattern": ".*", "definition": {}}),
            await management.delete(f"/api/vhosts/{vhost.name}"),
        ]
    assert {answer.status_code for answer in attempts} == {401}


async def test_it_gets_into_no_other_virtual_host(user: User, broker_vhosts: str) -> None:
    """Rights hold in one virtual host."""
    with pytest.raises((aio_pika.exceptions.AMQPException, ConnectionError)):
        await aio_pika.connect(f"amqp://{user.name}:{user.password}@{broker_vhosts}", timeout=5)


@pytest.fixture
async def broker_vhosts(vhost: Vhost) -> AsyncIterator[str]:
    """The address of another virtual host of the same broker."""
    other = Vhost(vhost.broker, f"{vhost.name}-other")
    await other.create()
    yield f"{vhost.broker.host}:{vhost.broker.amqp_port}/{other.name}"
    await other.close()
