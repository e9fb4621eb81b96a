"""Profile `cluster`: RabbitMQ on three nodes, any one of which may be killed at any time.

The tests are one story on one system and run in the order in which they stand here.
"""

import asyncio
import json
import subprocess
import time

import pytest

from tests.compose.system import System
from tests.support import wait_until

NODES = {"rabbitmq": "rabbit@rabbitmq-1", "rabbitmq-2": "rabbit@rabbitmq-2", "rabbitmq-3": "rabbit@rabbitmq-3"}
MAILS = 300
KILL_AFTER = 4.0
"""Seconds of a demo until the node is killed: mails are under way then."""


@pytest.fixture(scope="module", autouse=True)
def started(system: System) -> None:
    """One node, as most users have it."""
    system.up()


@pytest.fixture(scope="module")
def seconds_before() -> list[float]:
    """How long `MAILS` mails took on three nodes before any was killed."""
    return []


def copies_online(system: System, asked: str = "rabbitmq") -> dict[str, set[str]]:
    """Return on which nodes each queue has a copy that takes part."""
    listed = system.compose(
        "exec",
        "-T",
        asked,
        "rabbitmqctl",
        "-q",
        "list_queues",
        "-p",
        "bellhop",
        "--formatter",
        "json",
        "name",
        "online",
    )
    return {queue["name"]: set(queue["online"]) for queue in json.loads(listed)}


def kill(system: System, service: str) -> None:
    """Kill the server as a crash does: nothing can be tidied up, and Docker's restart policy applies."""
    system.compose("exec", "-T", service, "bash", "-c", "kill -9 $(cat /proc/1/task/1/children)")


async def seconds_for_mails(system: System, prefix: str) -> float:
    """Return how long it takes from the first POST until all mails are sent."""
    began = time.monotonic()
    async with system.client() as gateway:
        answers = await asyncio.gather(
            *(
                gateway.post("/v1/mail", json={"to": f"{n}@example.com", "subject": f"{prefix} {n}", "text": "Hello"})
                for n in range(MAILS)
            )
        )
        for answer in answers:
            task = await gateway.get(f"/v1/tasks/{answer.json()['id']}", params={"wait": 25})
            assert task.json()["state"] == "sent", task.text
    return time.monotonic() - began


async def test_one_node_becomes_three_and_keeps_what_it_has(system: System, seconds_before: list[float]) -> None:
    """Nodes join a broker that is in use, and every queue gets a copy on each of them."""
    nobody = {"specversion": "1.0", "id": "1", "source": "/test", "type": "nobody.reacts"}
    later = {"to": "later@example.com", "subject": "Later", "text": "Hello", "send_at": "2035-01-01T00:00:00Z"}
    async with system.client() as gateway:
        scheduled = (await gateway.post("/v1/mail", json=later)).json()["id"]
        structured = {"Content-Type": "application/cloudevents+json"}
        await gateway.post("/v1/events", json=nobody, headers=structured)
    system.compose("--profile", "cluster", "up", "--wait", "--wait-timeout", "240")

    online = copies_online(system)
    assert len(online) > 10
    assert all(copies == set(NODES.values()) for copies in online.values()), online
    async with system.client() as gateway:
        assert (await gateway.get(f"/v1/tasks/{scheduled}")).json()["state"] == "scheduled"
        kept = (await gateway.get("/v1/dead-letters", params={"queue": "unrouted"})).json()["dead_letters"]
    assert [one["type"] for one in kept] == ["nobody.reacts"]
    seconds_before.append(await seconds_for_mails(system, "before"))


@pytest.mark.parametrize("service", NODES)
async def test_a_killed_node_costs_nothing(system: System, service: str) -> None:
    """While the demo runs, the node dies: nothing is lost, and the node comes back and catches up by itself."""
    demo = system.start_demo()
    try:
        await asyncio.sleep(KILL_AFTER)
        kill(system, service)
        said, _ = await asyncio.to_thread(demo.communicate, timeout=300)
    except subprocess.TimeoutExpired:
        demo.kill()
        raise
    assert demo.returncode == 0, said
    print(said)  # -s shows the figures
    others = [name for name in NODES if name != service]

    def complete() -> bool:
        return all(copies == set(NODES.values()) for copies in copies_online(system, others[0]).values())

    await wait_until(complete, 120, f"{service} has all its copies again", interval=2)


async def test_a_lost_volume_is_a_new_node(system: System) -> None:
    """The first node comes back with an empty disk: the others forget it, it joins them, and has its copies again."""
    system.compose("rm", "-fsv", "rabbitmq")
    system.docker("volume", "rm", f"{system.name}_rabbitmq-1")
    system.compose("--profile", "cluster", "up", "--wait", "--wait-timeout", "240")
    assert all(copies == set(NODES.values()) for copies in copies_online(system, "rabbitmq-2").values())
    status = ["exec", "-T", "rabbitmq-2", "rabbitmq-streams", "-q", "stream_status", "--vhost", "bellhop"]
    assert "undefined" not in system.compose(*status, "notifier.log")


async def test_it_is_as_fast_as_before(system: System, seconds_before: list[float]) -> None:
    """After all that, the system works at its full rate again, and nobody did anything."""
    seconds = await seconds_for_mails(system, "after")
    print(f"{MAILS} mails: {seconds_before[0]:.2f} s before, {seconds:.2f} s after")
    # Twice: what else the machine does in between is not ours to know.
    assert seconds < 2 * seconds_before[0] + 2
