"""kill -9 in the middle of a broadcast: whoever had no task gets one, and whoever had one does not get another."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from bellhop.contracts.outcomes import State
from bellhop.local import processes
from bellhop.web.auth import new_key
from tests.services.newsletter_support import StandIn, sent
from tests.support import wait_until
from tests.support.addresses import service_environment
from tests.support.broker import Vhost
from tests.support.ports import lasting_ports

RECIPIENTS = 1500
KILLS = 2


class Gateway:
    """A gateway as a process of its own."""

    def __init__(self, vhost: Vhost, database_url: str) -> None:
        (self.port,) = lasting_ports(1)
        self.key = new_key()
        self.environment = service_environment()
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
            preexec_fn=processes.ends_with_us(),
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


async def broadcast(client: httpx.AsyncClient, emails: list[str]) -> str:
    """Put these people on a list, and send them a mail."""
    await client.post(
        "/v1/subscribers/import",
        params={"lists": "news", "confirmed": "true"},
        content="\n".join(["email", *emails]).encode(),
        headers={"Content-Type": "text/csv"},
        timeout=60,
    )
    answer = await client.post("/v1/broadcasts", json={"list": "news", "subject": "s", "text": "t"})
    return str(answer.json()["id"])


async def finished(client: httpx.AsyncClient, broadcast_id: str, state: str = "finished") -> dict[str, int]:
    """Wait for the end of a broadcast; return its counts."""

    async def counts() -> dict[str, int] | None:
        document = (await client.get(f"/v1/broadcasts/{broadcast_id}")).json()
        return document["counts"] if document["state"] == state else None

    # What a killed one had claimed for itself is free again after its lease.
    return await wait_until(counts, 60, f"the broadcast is {state}", interval=0.2)


@pytest.mark.timeout(300)
async def test_a_killed_gateway_forgets_nobody_and_mails_nobody_twice(gateway: Gateway, vhost: Vhost) -> None:
    """Killed again and again while it makes tasks, it ends with exactly one task for each recipient."""
    emails = [f"reader-{number:04}@example.com" for number in range(RECIPIENTS)]
    async with gateway.client() as client, StandIn(sent).running(vhost) as mailer:
        await gateway.start(client)
        broadcast_id = await broadcast(client, emails)
        for number in range(1, KILLS + 1):
            goal = number * RECIPIENTS // (KILLS + 2)
            await wait_until(lambda goal=goal: len(mailer.tasks) >= goal, 60, f"{goal} are mailed", interval=0.005)
            gateway.kill()
            await gateway.start(client)

        counts = await finished(client, broadcast_id)

    assert counts["sent"] == RECIPIENTS
    assert (
        sorted(mailer.recipients) == emails
    )  # by task: the broker may bring a message twice, the mailer's inbox knows


@pytest.mark.timeout(300)
async def test_what_was_asked_for_survives_a_crash(gateway: Gateway, vhost: Vhost) -> None:
    """Killed right after each answer: a pause stays a pause, a retry reaches everybody it is for, a cancel ends it."""
    emails = [f"reader-{number:03}@example.com" for number in range(200)]
    mailer = StandIn(lambda _: None)
    async with gateway.client() as client, mailer.running(vhost):
        await gateway.start(client)
        broadcast_id = await broadcast(client, emails)

        async def ask_and_die(action: str) -> None:
            assert (await client.post(f"/v1/broadcasts/{broadcast_id}/{action}")).status_code == 202
            gateway.kill()
            await gateway.start(client)

        async def progress() -> tuple[str, dict[str, int]]:
            document = (await client.get(f"/v1/broadcasts/{broadcast_id}")).json()
            return document["state"], {state: count for state, count in document["counts"].items() if count}

        await wait_until(lambda: len(mailer.tasks) == 20, 30, "the first ones are with the mailer")
        await ask_and_die("pause")
        mailer.decide = lambda task: {"state": State.FAILED, "code": 554} if task.round == 1 else sent(task)
        for task_id, round_ in list(mailer.tasks):
            await mailer.report(task_id, round_, {"state": State.FAILED, "code": 554})

        async def all_came_back() -> bool:
            return await progress() == ("paused", {"failed": 20, "waiting": 180})

        await wait_until(all_came_back, 30, "what was under way is over")
        await ask_and_die("resume")
        assert (await finished(client, broadcast_id))["failed"] == 200
        await ask_and_die("retry-failed")
        assert (await finished(client, broadcast_id))["sent"] == 200
        for round_ in (1, 2):
            assert sorted(task.to for (_, number), task in mailer.tasks.items() if number == round_) == emails

        mailer.decide = lambda _: None
        broadcast_id = await broadcast(client, emails)
        await wait_until(lambda: len(mailer.tasks) > 400, 30, "another one is with the mailer")
        await ask_and_die("cancel")
        assert (await finished(client, broadcast_id, "cancelled"))["cancelled"] == 200
