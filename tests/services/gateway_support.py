"""A running gateway on a real broker and a real database, and a client that has its key."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import orjson

from bellhop.contracts.base import now
from bellhop.contracts.outcomes import Outcome, State
from bellhop.sql.migrations import migrate
from bellhop.web.auth import new_key
from services.gateway.app import build
from services.gateway.settings import Settings
from tests.support import wait_until
from tests.support.broker import Vhost
from tests.support.serving import serving


@dataclass
class RunningGateway:
    """Where it is, and how to ask it."""

    url: str
    admin: httpx.AsyncClient
    vhost: Vhost

    def client(self, key: str) -> httpx.AsyncClient:
        """Return a client with another key."""
        return httpx.AsyncClient(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)

    async def make_key(self, name: str, *scopes: str) -> str:
        """Make an API key."""
        answer = await self.admin.post("/v1/keys", json={"name": name, "scopes": list(scopes)})
        assert answer.status_code == 201, answer.text
        key: str = answer.json()["key"]
        return key

    async def report(self, task_id: str, state: State, attempt: int = 1, round_: int = 1, **values: object) -> None:
        """Publish an outcome, as the mailer does."""
        outcome = Outcome.model_validate(
            {"task_id": task_id, "round": round_, "attempt": attempt, "state": state, "at": now(), **values}
        )
        await self.vhost.publish(
            "outcomes",
            f"mail.normal.{state}",
            outcome.model_dump_json(exclude_none=True).encode(),
            headers=envelope_headers(f"mail.{state}"),
        )

    async def state(self, task_id: str) -> str:
        """Return where a task is."""
        found: str = (await self.admin.get(f"/v1/tasks/{task_id}")).json()["state"]
        return found


def envelope_headers(type_: str) -> dict[str, str | int]:
    """Return the headers of a message of ours."""
    return {
        "cloudEvents:id": os.urandom(8).hex(),
        "cloudEvents:source": "tests",
        "cloudEvents:type": type_,
        "cloudEvents:time": now().isoformat(),
        "attempt": 1,
    }


@asynccontextmanager
async def running_gateway(vhost: Vhost, database_url: str, **settings: object) -> AsyncIterator[RunningGateway]:
    """Run a gateway until the block ends."""
    await migrate(database_url, "services.gateway")
    key = str(settings.get("admin_key") or new_key())
    values = {
        "amqp_url": vhost.amqp_url,
        "database_url": database_url,
        "token_key": "k" * 40,
        "admin_key": key,
        "instance": "tests",
        "shutdown_seconds": 3,
        "management_url": vhost.broker.management_url,
    }
    with serving(build(Settings.model_validate(values | settings))) as port:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30
        ) as admin:

            async def ready() -> bool:
                return (await admin.get("/readyz")).status_code == 200

            await wait_until(ready, 15, "the gateway is ready")
            yield RunningGateway(url, admin, vhost)


def mail(**changes: object) -> dict[str, object]:
    """Return a valid request for a mail."""
    return {"to": "ada@example.com", "subject": "Hello", "text": "Hello Ada"} | changes


def json(body: bytes) -> dict[str, object]:
    """Return the object that a message carries."""
    value: dict[str, object] = orjson.loads(body)
    return value
