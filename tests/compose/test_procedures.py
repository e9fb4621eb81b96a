"""The procedures of docs/operations.md, as they are written there: backup, restore, renewed secrets, upgrade.

The tests are one story on one system and run in the order in which they stand here.
"""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest

from tests.compose.system import SERVICES, System
from tests.compose.test_system import all_sent, post_scores, ranking, send_mails
from tests.support import pages, wait_until

LINK = re.compile(r"/unsubscribe\?token=[\w-]+")
ENTRIES = [("ada", 30.0), ("bob", 20.0)]


@pytest.fixture(scope="module", autouse=True)
def started(system: System) -> None:
    """Everything is up."""
    system.up()


@dataclass
class Before:
    """What there was before anything happened to the system."""

    admin_key: str = ""
    api_key: str = ""
    links: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def before() -> Before:
    return Before()


def blocks(system: System, heading: str) -> list[str]:
    """Return the shell commands of one section of the page, block by block."""
    return [block.text for block in pages.blocks("docs/operations.md", heading, system.folder)]


def run(system: System, commands: str) -> str:
    """Run a block as a user would, and require that every command of it succeeds; return what it printed."""
    return system.shell(f"set -e -o pipefail\n{commands}")


async def answers_at(system: System, link: str) -> int:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=30) as visitor:
        return (await visitor.get(link)).status_code


async def statuses(system: System, path: str, *keys: str) -> list[int]:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False, timeout=30) as client:
        return [(await client.get(path, headers={"Authorization": f"Bearer {key}"})).status_code for key in keys]


async def test_there_is_something_to_lose(system: System, before: Before) -> None:
    """Mails, ranks, an API key, and links of a broadcast, which have to work for years."""
    before.admin_key = system.key
    async with system.client() as gateway:
        made = await gateway.post("/v1/keys", json={"name": "shop", "scopes": ["mail:send", "mail:read"]})
        before.api_key = made.json()["key"]
        for person in ("ada", "bob", "cleo"):
            person_of = {"email": f"{person}@example.com", "lists": ["news"], "confirmed": True}
            assert (await gateway.post("/v1/subscribers", json=person_of)).status_code in {200, 201, 202}
        issue = {"list": "news", "subject": "News", "text": "{{ subscriber.unsubscribe_url }}"}
        assert (await gateway.post("/v1/broadcasts", json=issue)).status_code == 202
    before.tasks = await send_mails(system, 3, "kept")
    await all_sent(system, before.tasks)
    await post_scores(system, ENTRIES)

    async def ranked() -> bool:
        return await ranking(system) == ENTRIES

    async def mailed() -> list[str]:
        async with httpx.AsyncClient(base_url=system.mailbox_url, trust_env=False) as mailbox:
            mails = (await mailbox.get("/api/v1/messages")).json()["messages"]
        # By the beginning of the text, which every mailbox lists.
        begun = " ".join(mail["Snippet"] for mail in mails if mail["Subject"] == "News")
        links = LINK.findall(begun)
        return links if len(links) == 3 else []

    await wait_until(ranked, 30, "the scores are ranked")
    before.links = await wait_until(mailed, 60, "the issue has arrived", interval=0.5)
    assert await answers_at(system, before.links[0]) == 200


async def test_a_backup_is_restored_into_an_empty_system(system: System, before: Before) -> None:
    """The page's commands bring back data and secrets and print no error; links that were mailed before work."""
    back_up, restore, *_ = blocks(system, "Back up and restore")
    run(system, back_up)
    system.down("-v")
    assert "error" not in run(system, restore).lower()
    assert system.key == before.admin_key
    await all_sent(system, before.tasks)
    assert await statuses(system, f"/v1/tasks/{before.tasks[0]}", before.admin_key) == [200]
    assert await statuses(system, "/v1/tasks", before.api_key) == [200]
    await wait_until(lambda: _ranked(system), 30, "the ranks are there")
    assert [await answers_at(system, link) for link in before.links] == [200, 200, 200]
    await all_sent(system, await send_mails(system, 2, "restored"))


async def _ranked(system: System) -> bool:
    return await ranking(system) == ENTRIES


def _passwords(system: System) -> dict[str, str]:
    found = {service: system.secret(service, "amqp_url").split(":")[2].partition("@")[0] for service in SERVICES}
    pages = system.compose("run", "--rm", "--no-deps", "-T", "--entrypoint", "cat", "topology", MANAGEMENT_URL)
    return found | {"deploy": pages.split(":")[2].partition("@")[0]}


MANAGEMENT_URL = "/run/secrets/bellhop/management-url"


async def test_every_password_is_renewed(system: System) -> None:
    """RabbitMQ refuses the old ones and takes the new ones; mail and ranks go on."""
    old = _passwords(system)
    hashes = (
        "SELECT string_agg(rolname || rolpassword, ' ' ORDER BY rolname) FROM pg_authid WHERE rolpassword IS NOT NULL"
    )
    ask = ["exec", "-T", "postgres", "psql", "-qtAU", "postgres", "-c", hashes]
    roles = system.compose(*ask)
    _, hand_over, *_ = blocks(system, "Renew secrets")
    run(system, f"docker compose run --rm -T secrets {' '.join(old)} postgres\n{hand_over}")
    system.compose("restart", *SERVICES)
    new = _passwords(system)
    for user, password in old.items():
        assert new[user] != password
        with pytest.raises(AssertionError, match="failed to authenticate"):
            system.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "authenticate_user", "--", user, password)
        system.compose("exec", "-T", "rabbitmq", "rabbitmqctl", "authenticate_user", "--", user, new[user])
    changed = set(system.compose(*ask).split()) - set(roles.split())
    assert len(changed) == 4, "postgres and the three services with tables"
    assert "RabbitMQ has the topology" in system.compose("run", "--rm", "--no-deps", "-T", "topology")
    await _works(system)
    await all_sent(system, await send_mails(system, 2, "renewed"))


async def test_every_key_is_renewed(system: System, before: Before) -> None:
    """The old admin key and tokens are refused, API keys of clients and links in mails go on."""
    async with system.client() as gateway:
        grant = {"subject": "ada", "channels": ["news"]}
        token = (await gateway.post("/v1/stream-tokens", json=grant)).json()["token"]
    run(system, "docker compose run --rm -T secrets token-key link-key admin-key")
    system.compose("restart", *SERVICES)
    await _works(system)
    assert system.key != before.admin_key
    assert await statuses(system, "/v1/tasks", before.admin_key, system.key, before.api_key) == [401, 200, 200]
    async with httpx.AsyncClient(base_url=system.notifier_url, trust_env=False) as browser:
        assert (await browser.get("/v1/poll", params={"token": token})).status_code == 401
    assert [await answers_at(system, link) for link in before.links] == [200, 200, 200]
    await all_sent(system, await send_mails(system, 2, "rekeyed"))


async def _works(system: System) -> None:
    async def ready() -> bool:
        async with httpx.AsyncClient(base_url=system.url, trust_env=False) as gateway:
            return (await gateway.get("/readyz")).status_code == 200

    await wait_until(ready, 120, "the gateway is ready", interval=0.5)
    await wait_until(lambda: _ranked(system), 120, "the ranks are there", interval=0.5)


@asynccontextmanager
async def load(system: System) -> AsyncIterator[tuple[Counter[int], list[str]]]:
    """Send mails and read ranks, twenty times a second; give every status, and the tasks that were accepted."""
    seen: Counter[int] = Counter()
    tasks: list[str] = []
    over = asyncio.Event()

    async def go_on(gateway: httpx.AsyncClient) -> None:
        number = 0
        while not over.is_set():
            number += 1
            mail = {"to": f"during-{number}@example.com", "subject": f"during {number}", "text": "Hello"}
            accepted = await gateway.post("/v1/mail", json=mail, headers={"Idempotency-Key": f'"during-{number}"'})
            seen[accepted.status_code] += 1
            if accepted.status_code == 202:
                tasks.append(accepted.json()["id"])
            seen[(await gateway.get("/v1/leaderboards/compose")).status_code] += 1
            await asyncio.sleep(0.1)

    async with system.client() as gateway, asyncio.TaskGroup() as running:
        running.create_task(go_on(gateway))
        try:
            yield seen, tasks
        finally:
            over.set()


@pytest.mark.parametrize("replicas", [1, 2])
async def test_an_upgrade_without_an_outage(system: System, replicas: int) -> None:
    """Every replica is another one afterwards, with two no request failed, and each mail arrived once."""
    if replicas > 1:
        system.up("--no-recreate", *(part for one in SERVICES for part in ("--scale", f"{one}={replicas}")))
    old = {container for service in SERVICES for container in system.containers(service)}
    async with load(system) as (seen, tasks):
        await asyncio.to_thread(system.shell, "deploy/upgrade --no-build")
    new = {service: system.containers(service) for service in SERVICES}
    assert {service: len(found) for service, found in new.items()} == dict.fromkeys(SERVICES, replicas)
    assert not old & {container for found in new.values() for container in found}
    # With one replica, a request that reaches the old one in the moment of its end has no other to go to.
    assert seen[503] <= (3 if replicas == 1 else 0), seen
    assert set(seen) <= {200, 202, 503}, seen
    await all_sent(system, tasks)
    async with system.client() as gateway:
        found = [(await gateway.get(f"/v1/tasks/{task_id}")).json() for task_id in tasks]
    assert {(task["state"], task["uncertain"]) for task in found} == {("sent", False)}, "lost or doubled"
