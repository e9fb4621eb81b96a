"""A real RabbitMQ for tests, and an independent witness of what lies on it (aio-pika and the management API)."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import httpx

from bellhop.amqp import applying
from bellhop.local.node import Node, Ports
from tests.support.ports import lasting_ports


@contextmanager
def private_node(folder: Path) -> Iterator[dict[str, Any]]:
    """Start a private node and say how to reach it (the fields of `Broker`)."""
    password = secrets.token_urlsafe(16)
    node = Node(folder, Ports(*lasting_ports(5)), {"deploy": password})
    node.launch()
    try:
        node.wait_ready()
        yield {
            "host": "127.0.0.1",
            "amqp_port": node.ports.amqp,
            "management_port": node.ports.management,
            "user": "deploy",
            "password": password,
        }
    finally:
        node.kill()


@dataclass(frozen=True)
class Broker:
    """The broker of this test session, with an administrator's rights."""

    host: str
    amqp_port: int
    management_port: int
    user: str
    password: str = field(repr=False)

    def amqp_url(self, vhost: str) -> str:
        """Return the AMQP URL of a virtual host."""
        return f"amqp://{self.user}:{self.password}@{self.host}:{self.amqp_port}/{vhost}"

    @property
    def management_url(self) -> str:
        """The management API, credentials included."""
        return f"http://{self.user}:{self.password}@{self.host}:{self.management_port}"

    def management(self) -> httpx.AsyncClient:
        """Return a client of the management API; paths like `/api/queues` go behind its base URL."""
        return httpx.AsyncClient(
            base_url=f"http://{self.host}:{self.management_port}",
            auth=(self.user, self.password),
            trust_env=False,
            timeout=10,
        )


class Vhost:
    """One virtual host, made for one test."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.amqp_url = broker.amqp_url(name)
        self.management = broker.management()
        self._witness: aio_pika.abc.AbstractConnection | None = None

    async def create(self) -> None:
        """Make the virtual host and let the administrator in."""
        await self._put(f"/api/vhosts/{self.name}", {})
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        await self._put(f"/api/permissions/{self.name}/{self.broker.user}", everything)

    async def apply_topology(self) -> None:
        """Make Bellhop's exchanges, queues and bindings, as the deploy step does."""
        await applying.apply(self.broker.management_url, self.name)

    async def close(self) -> None:
        """Delete the virtual host and everything in it."""
        await self.management.delete(f"/api/vhosts/{self.name}")
        await self.disconnect()

    async def disconnect(self) -> None:
        """Close our own connections; the virtual host stays."""
        if self._witness is not None:
            await self._witness.close()
        await self.management.aclose()

    async def _put(self, path: str, document: dict[str, Any]) -> None:
        response = await self.management.put(path, json=document)
        assert response.is_success, f"PUT {path}: {response.status_code} {response.text}"

    async def channel(self) -> aio_pika.abc.AbstractChannel:
        """Return a fresh channel of the witness's connection: an error closes only that channel."""
        if self._witness is None or self._witness.is_closed:
            self._witness = await aio_pika.connect(self.amqp_url, client_properties={"connection_name": "witness"})
        return await self._witness.channel()

    async def depth(self, queue: str) -> int:
        """Return how many messages of `queue` are ready; those at a consumer, not yet settled, do not count."""
        channel = await self.channel()
        try:
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0
        finally:
            await channel.close()

    async def publish(self, exchange: str, routing_key: str, body: bytes = b"{}", **properties: Any) -> None:
        """Publish one message with a confirm; `properties` are those of `aio_pika.Message`."""
        channel = await self.channel()
        try:
            message = aio_pika.Message(body, **properties)
            target = channel.default_exchange if exchange == "" else await channel.get_exchange(exchange, ensure=False)
            await target.publish(message, routing_key)
        finally:
            await channel.close()

    async def get(self, queue: str) -> aio_pika.abc.AbstractIncomingMessage | None:
        """Take one message off `queue` (acked), or return None where nothing is ready."""
        channel = await self.channel()
        try:
            source = await channel.get_queue(queue, ensure=False)
            message = await source.get(fail=False)
            if message is not None:
                await message.ack()
            return message
        finally:
            await channel.close()

    async def close_connections(self) -> int:
        """Close every connection of this virtual host but the witness's, as an operator would; return how many."""
        response = await self.management.get(f"/api/vhosts/{self.name}/connections")
        closed = 0
        for connection in response.json():
            if connection.get("client_properties", {}).get("connection_name") != "witness":
                deleted = await self.management.delete(f"/api/connections/{connection['name']}")
                closed += deleted.is_success
        return closed
