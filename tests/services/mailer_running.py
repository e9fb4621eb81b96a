"""A mailer at work on a real broker and a real database, and what goes in and comes out of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.mail import MailTask, mail_document
from bellhop.contracts.tasks import CancelTask
from services.mailer.app import build
from tests.services.mailer_support import mailer_settings
from tests.support import Vhost, wait_until


class Running:
    """A mailer at work, and what goes in and comes out of it."""

    def __init__(self, app: FastAPI, vhost: Vhost) -> None:
        self.app = app
        self.vhost = vhost
        self.outcomes: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def put(self, queue: str, body: bytes, type: str = "mail.requested", **changes: Any) -> None:
        envelope = Envelope(type=type, source="/tests", **changes.pop("envelope", {}))
        message = Message(body, envelope, **changes)
        await self.vhost.publish("work", queue, body, headers=to_headers(message))

    async def mail(self, task_id: str = "t-1", *, round: int = 1, attempt: int = 1, **fields: Any) -> None:
        envelope = fields.pop("envelope", {})
        fields = {"to": "ada@example.com", "subject": "Hi", "text": "Hello", "lane": "normal"} | fields
        task = MailTask.model_validate({"task_id": task_id, "round": round, "owner": "key-1"} | fields)
        await self.put(
            MAIL.queues[task.lane], json.dumps(mail_document(task)).encode(), attempt=attempt, envelope=envelope
        )

    async def cancel(self, task_id: str) -> None:
        body = CancelTask(task_id=task_id, round=1).model_dump_json().encode()
        await self.put("mail.cancel", body, "mail.cancelled")

    async def outcome(self, count: int = 1, timeout: float = 10) -> dict[str, Any]:
        """Wait for the outcome number `count` and return it."""

        async def arrived() -> bool:
            while (message := await self.vhost.get("gateway.outcomes")) is not None:
                self.outcomes.append(json.loads(message.body))
                self.keys.append(str(message.routing_key))
            return len(self.outcomes) >= count

        await wait_until(arrived, timeout, f"{count} outcomes")
        return self.outcomes[count - 1]

    async def dead_letter(self) -> Any:
        return await wait_until(lambda: self.vhost.get("dead-letters"), description="a dead letter")


@asynccontextmanager
async def running_mailer(vhost: Vhost, database_url: str, port: int, **changes: Any) -> AsyncIterator[Running]:
    """Run a mailer whose relay listens on `port` of this machine, until the block ends."""
    urls = {"amqp_url": vhost.amqp_url, "database_url": database_url, "shutdown_seconds": 2.0}
    app = build(mailer_settings(port, **urls | changes))
    async with app.router.lifespan_context(app):

        async def ready() -> bool:
            return set((await app.state.ready()).values()) == {"ok"}

        await wait_until(ready, description="the mailer to be ready")
        yield Running(app, vhost)
