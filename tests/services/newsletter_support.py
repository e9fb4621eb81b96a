"""What stands in for the mailer where only the gateway is under test: it takes tasks and reports outcomes at once."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aio_pika
import orjson
from aio_pika.abc import AbstractIncomingMessage

from bellhop.contracts.base import now
from bellhop.contracts.mail import MailTask
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.tasks import CancelTask
from tests.services.gateway_support import envelope_headers
from tests.support.broker import Vhost

Decide = Callable[[MailTask], dict[str, Any] | None]
"""The outcome of a task; None leaves it in hand."""


def sent(task: MailTask) -> dict[str, Any]:
    return {"state": State.SENT, "code": 250}


class StandIn:
    """Takes the lanes bulk and normal, and `mail.cancel`."""

    def __init__(self, decide: Decide) -> None:
        self.decide = decide
        self.tasks: dict[tuple[str, int], MailTask] = {}
        self.copies: Counter[tuple[str, int]] = Counter()
        self.cancelled: set[str] = set()
        self._kept: list[AbstractIncomingMessage] = []

    @property
    def recipients(self) -> list[str]:
        """Whom mail went to, each task once."""
        return [task.to for task in self.tasks.values()]

    @asynccontextmanager
    async def running(self, vhost: Vhost) -> AsyncIterator["StandIn"]:
        connection = await aio_pika.connect(vhost.amqp_url, client_properties={"connection_name": "witness"})
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(200)
            self._outcomes = await channel.get_exchange("outcomes", ensure=False)
            for name, handler in (("mail.bulk", self._take), ("mail.normal", self._take), ("mail.cancel", self._stop)):
                await (await channel.get_queue(name, ensure=False)).consume(handler)
            yield self

    async def _take(self, message: AbstractIncomingMessage) -> None:
        task = MailTask.model_validate_json(message.body)
        self.tasks[task.task_id, task.round] = task
        self.copies[task.task_id, task.round] += 1
        values = {"state": State.CANCELLED, "attempt": 0} if task.task_id in self.cancelled else self.decide(task)
        if values is None:
            self._kept.append(message)
            return
        await self.report(task.task_id, task.round, values)
        await message.ack()

    async def _stop(self, message: AbstractIncomingMessage) -> None:
        request = CancelTask.model_validate_json(message.body)
        self.cancelled.add(request.task_id)
        if any(orjson.loads(kept.body)["task_id"] == request.task_id for kept in self._kept):
            await self.report(request.task_id, request.round, {"state": State.CANCELLED, "attempt": 0})
        await message.ack()

    async def report(self, task_id: str, round_: int, values: dict[str, Any]) -> None:
        """Publish an outcome."""
        outcome = Outcome.model_validate({"task_id": task_id, "round": round_, "at": now()} | values)
        message = aio_pika.Message(
            outcome.model_dump_json(exclude_none=True).encode(), headers=envelope_headers(f"mail.{outcome.state}")
        )
        await self._outcomes.publish(message, f"mail.bulk.{outcome.state}")
