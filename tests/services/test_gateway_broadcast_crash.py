"""kill -9 in the middle of a broadcast: whoever had no task gets one, and whoever had one does not get another."""

import os
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from bellhop.cli import processes
from bellhop.cli.ports import free_ports
from bellhop.web.auth import new_key
from tests.services.newsletter_support import StandIn, sent
from tests.support import wait_until
from tests.support.broker import Vhost

RECIPIENTS = 1500
KILLS = 2


class Gateway:
    """A gateway as a process of its own."""

    def __init__(self, vhost: Vhost, database_url: str) -> None:
        (self.port,) = free_ports(1)
        self.key = new_key()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}
        self.environment |= {
            "BELLHOP_AMQP_URL": vhost.amqp_url,
            "BELLHOP_DATABASE_URL": database_url,
            "BELLHOP_TOKEN_KEY": "k" * 40,
            "BELLHOP_ADMIN_KEY": self.key,
            "BELLHOP_PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers={"Authorization": f"Bearer {self.key}"}, trust_env=False
        )

    def launch(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.gateway"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            preexec_fn=processes.dies_with_us(),
        )

    async def start(self, client: httpx.AsyncClient) -> None:
        self.launch()

        async def ready() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 200
            except httpx.TransportError:
                return False

        await wait_until(ready, 60, "the gateway is ready", interval=0.1)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def gateway(vhost: Vhost, database_url: str) -> Iterator[Gateway]:
    running = Gateway(vhost, database_url)
    yield running
    running.kill()


@pytest.mark.timeout(300)
async def test_a_killed_gateway_forgets_nobody_and_mails_nobody_twice(gateway: Gateway, vhost: Vhost) -> None:
    """Killed again and again while it feeds, it ends with exactly one task for each recipient."""
    emails = [f"reader-{number:04}@example.com" for number in range(RECIPIENTS)]
    async with gateway.client() as client, StandIn(sent).running(vhost) as mailer:
        await gateway.start(client)
        await client.post(
            "/v1/subscribers/import",
            params={"lists": "news", "confirmed": "true"},
            content="\n".join(["email", *emails]).encode(),
            headers={"Content-Type": "text/csv"},
            timeout=60,
        )
        wish = {"list": "news", "subject": "s", "text": "t"}
        broadcast_id = (await client.post("/v1/broadcasts", json=wish)).json()["id"]
        for number in range(1, KILLS + 1):
            goal = number * RECIPIENTS // (KILLS + 2)
            await wait_until(lambda goal=goal: len(mailer.tasks) >= goal, 60, f"{goal} are mailed", interval=0.005)
            gateway.kill()
            await gateway.start(client)

        async def finished() -> dict[str, int] | None:
            document = (await client.get(f"/v1/broadcasts/{broadcast_id}")).json()
            return document["counts"] if document["state"] == "finished" else None

        # What the killed one had claimed for itself is free again after its lease.
        counts = await wait_until(finished, 60, "the broadcast is finished", interval=0.2)

    assert counts["sent"] == RECIPIENTS
    assert (
        sorted(mailer.recipients) == emails
    )  # by task: the broker may bring a message twice, the mailer's inbox knows
