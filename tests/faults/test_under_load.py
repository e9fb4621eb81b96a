"""Everything at once: load goes on while something is killed, frozen, filled up, cut off or taken away.

Every test ends in the same way: after the fault is over something new goes all the way through (that is the recovery
time), then the books are balanced, and no process had to be helped.
"""

import asyncio
import os
import random
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import aio_pika
import httpx
import pytest

from bellhop.amqp import topology
from tests.faults import netns, pace
from tests.faults.proxy import Proxy, proxy_to
from tests.faults.scene import PUBLISH_SECONDS, Scene, scene
from tests.faults.system import Rig, allow
from tests.support import wait_until
from tests.support.ports import lasting_ports

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

# What dies.


async def test_services_killed_at_random(rig: Rig, tmp_path: Path, record: Any) -> None:
    """kill -9 of one of the four services again and again, at any moment of their work."""
    dice, runs = random.Random(4), pace.times(40, 15)
    async with scene(rig, tmp_path) as play:
        async with play.driver.load():
            for _ in range(runs):
                await asyncio.sleep(dice.uniform(0.05, 1.0))
                await play.system.restart(dice.choice(list(play.system.services)))
        await play.system.all_ready()
        await play.end("kill -9 of services at random, under load", record, runs=runs)


async def test_services_restarted_in_order(rig: Rig, tmp_path: Path, record: Any) -> None:
    """SIGTERM of each service: exit status 0 within the time for shutting down, and nothing cut."""
    rounds = pace.times(3, 1)
    async with scene(rig, tmp_path) as play:
        slowest = 0.0
        async with play.driver.load():
            for _ in range(rounds):
                for service in play.system.services.values():
                    await asyncio.sleep(0.5)
                    began = time.monotonic()
                    assert await service.terminate() == 0, service.log.read_text()[-2000:]
                    slowest = max(slowest, time.monotonic() - began)
                    service.start()
                    await service.ready()
        runs = rounds * len(play.system.services)
        await play.end("SIGTERM of each service, under load", record, runs=runs, beside=f"ended within {slowest:.1f} s")


async def test_broker_killed(rig: Rig, tmp_path: Path, record: Any) -> None:
    """kill -9 of the broker, back after two seconds: requests are taken all the while."""
    runs = pace.times(3, 1)
    async with scene(rig, tmp_path) as play:
        async with play.driver.load():
            for _ in range(runs):
                await asyncio.sleep(2)
                rig.kill_broker()
                await asyncio.sleep(2)
                await rig.start_broker()
                await wait_until(lambda: play.system["gateway"].is_ready(), 40, "the gateway is ready again")
        refused = play.driver.statuses["503"]
        await play.end("kill -9 of the broker, under load", record, runs=runs, beside=f"{refused} answers 503")
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


async def test_broker_absent_at_the_start(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Services that start before the broker wait, alive and not ready, and go on by themselves."""
    async with scene(rig, tmp_path) as play:
        rig.kill_broker()
        for service in play.system.services.values():
            service.kill()
            service.start()
        for service in play.system.services.values():

            async def alive(url: str = service.url) -> bool:
                try:
                    return (await play.system.http.get(f"{url}/healthz")).status_code == 200
                except httpx.TransportError:
                    return False

            await wait_until(alive, 20, f"{service.name} is alive")
            assert (await play.system.http.get(f"{service.url}/readyz")).status_code == 503
        taken = await asyncio.gather(*(play.driver.mail() for _ in range(50)))
        assert all(taken), "a mail is a row, and needs no broker to be one"
        await rig.start_broker()
        began = time.monotonic()
        await play.system.all_ready(30)
        ready = time.monotonic() - began
        await play.end("broker absent at the start", record, beside=f"all ready {ready:.1f} s after it came")


# What is frozen or full.


async def test_broker_frozen(rig: Rig, tmp_path: Path, record: Any) -> None:
    """SIGSTOP: connections stay open and nothing answers. No request waits longer than a publish may."""
    frozen = pace.seconds(30, 8)  # longer than a publish may take
    async with scene(rig, tmp_path) as play:
        async with play.driver.load():
            await asyncio.sleep(2)
            os.kill(rig.broker_pid, signal.SIGSTOP)
            await asyncio.sleep(frozen)
            os.kill(rig.broker_pid, signal.SIGCONT)
            await wait_until(lambda: play.system["gateway"].is_ready(), 40, "the gateway is ready again")
        await play.end(
            f"broker frozen for {frozen} s (SIGSTOP)", record, beside=f"slowest answer {play.driver.slowest:.1f} s"
        )
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


ALARMS = {
    "memory alarm": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.6")),
    "disk alarm": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "50MB")),
}


@pytest.mark.parametrize("alarm", ALARMS)
async def test_broker_alarm(alarm: str, rig: Rig, tmp_path: Path, record: Any) -> None:
    """The broker stops whoever publishes. Requests are taken, consumers go on, and afterwards all goes out."""
    on, off = ALARMS[alarm]
    lasting = pace.seconds(15, 8)
    async with scene(rig, tmp_path) as play:
        try:
            async with play.driver.load():
                await asyncio.sleep(2)
                await rig.rabbitmqctl(*on)
                await wait_until(lambda: _is_blocked(play), 20, "the gateway says why it is not ready")
                await asyncio.sleep(lasting)
                await rig.rabbitmqctl(*off)
        finally:
            await rig.rabbitmqctl(*off)
        await play.end(f"{alarm} for {lasting} s", record, beside=f"slowest answer {play.driver.slowest:.1f} s")
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


async def _is_blocked(play: Scene) -> bool:
    answer = await play.system.http.get(f"{play.system['gateway'].url}/readyz")
    return answer.status_code == 503 and ("alarm" in answer.text or "blocks" in answer.text or "low on" in answer.text)


async def test_queue_full(rig: Rig, tmp_path: Path, record: Any) -> None:
    """A full queue refuses (reject-publish) and never drops: what was taken waits in the outbox."""
    async with scene(rig, tmp_path) as play:
        await _limit(play, "mail.normal", 20)
        await play.system["mailer"].terminate()
        for _ in range(300):
            assert await play.driver.mail("normal")
        await wait_until(lambda: play.sinks.outbox() > 200, 20, "most of them wait in the outbox")
        depth = await play.system.vhost.depth("mail.normal")
        play.system["mailer"].start()
        await play.end("queue full (20 messages)", record, beside=f"{depth} on the queue, the rest in the outbox")


async def _limit(play: Scene, queue: str, length: int, **more: Any) -> None:
    definition = next(each.policy for each in topology.QUEUES if each.name == queue) | {"max-length": length} | more
    await play.system.vhost._put(
        f"/api/policies/{play.system.vhost.name}/test-limit",
        {"pattern": f"^{queue}$", "priority": 9, "apply-to": "queues", "definition": definition},
    )

    async def applied() -> bool:
        answer = await play.system.vhost.management.get(f"/api/queues/{play.system.vhost.name}/{queue}")
        return answer.json().get("policy") == "test-limit"

    await wait_until(applied, 20, "the limit holds")


async def test_unroutable(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Without its binding a mail cannot be routed: the broker's return is noticed, and it waits in the outbox."""
    lasting = pace.seconds(5, 2)
    async with scene(rig, tmp_path) as play:
        management, vhost = play.system.vhost.management, play.system.vhost.name
        path = f"/api/bindings/{vhost}/e/work/q/mail.normal"
        async with play.driver.load():
            await asyncio.sleep(1)
            assert (await management.delete(f"{path}/mail.normal")).is_success
            await asyncio.sleep(lasting)
            waiting = play.sinks.outbox()
            assert (await management.post(path, json={"routing_key": "mail.normal"})).is_success
        await play.end(
            f"binding of a work queue gone for {lasting} s", record, beside=f"{waiting} messages waited in the outbox"
        )


async def test_consumer_cancelled(rig: Rig, tmp_path: Path, record: Any) -> None:
    """A queue that is deleted and made anew cancels its consumer: it subscribes again by itself."""
    async with scene(rig, tmp_path) as play:
        # Nobody deletes a queue with messages in it and gets them back: this is about the consumer.
        management, vhost = play.system.vhost.management, play.system.vhost.name
        for queue in ("mail.urgent", "leaderboard.scores", "gateway.outcomes"):
            assert (await management.delete(f"/api/queues/{vhost}/{queue}")).is_success
        await play.system.vhost.apply_topology()
        await play.end("consumers cancelled: their queues deleted and created again", record, runs=3)


async def test_rights_revoked(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Rights taken away, and connections closed: no hot loop, and back when the rights are back."""
    async with scene(rig, tmp_path) as play:
        nothing, settled, counted = topology.Rights(write="^$", read="^$"), pace.seconds(10, 5), pace.seconds(5, 3)
        async with play.driver.load():
            await asyncio.sleep(1)
            for user in topology.RIGHTS:
                await allow(play.system.vhost, user, nothing)
            await wait_until(lambda: play.system.vhost.close_connections(), 20, "the connections are closed")
            await asyncio.sleep(settled)
            lines = play.system.logs().count("\n")
            await asyncio.sleep(counted)
            grown = play.system.logs().count("\n") - lines
            for user, rights in topology.RIGHTS.items():
                await allow(play.system.vhost, user, rights)
        await play.end(
            f"rights of all services revoked for {settled + counted} s",
            record,
            beside=f"{grown / counted:.0f} log lines a second",
        )
        assert grown / counted < 40


async def test_database_locked(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Another program holds each SQLite database, within its busy timeout: everybody waits, nobody fails."""
    held = pace.seconds(8, 4)
    async with scene(rig, tmp_path) as play:
        play.driver.timeout = 20
        async with play.driver.load():
            await asyncio.sleep(1)
            for name in ("gateway", "mailer", "leaderboard"):
                await asyncio.to_thread(_hold, play.system.database(name), held)
        await play.end(f"database locked for {held} s by another program", record, runs=3,
                       beside=f"slowest answer {play.driver.slowest:.1f} s")  # fmt: skip


async def test_database_locked_beyond_patience(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Held for longer than anybody waits: 503 or nothing lost, and every service goes on afterwards."""
    async with scene(rig, tmp_path) as play:
        play.driver.timeout = 30
        async with play.driver.load(workers=4):
            await asyncio.sleep(1)
            await asyncio.gather(
                *(
                    asyncio.to_thread(_hold, play.system.database(name), 14)
                    for name in ("gateway", "mailer", "leaderboard")
                )
            )
        refused = play.driver.statuses["503"]
        await play.end("all databases locked for 14 s", record, beside=f"{refused} answers 503")


def _hold(database: Path, seconds: float) -> None:
    connection = sqlite3.connect(database, timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


# What is between the services and the broker.


async def _through(rig: Rig, folder: Path, fault: str, record: Any, act: Any) -> None:
    """Put a proxy between all services and the broker, let `act` use it under load, and balance."""
    async with proxy_to(rig.node.ports.amqp) as proxy, scene(rig, folder, amqp_port=proxy.port) as play:
        async with play.driver.load():
            await asyncio.sleep(1)
            beside = await act(proxy, play)
        await play.end(fault, record, beside=beside or "")
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


async def test_network_slow(rig: Rig, tmp_path: Path, record: Any) -> None:
    """100 to 300 ms each way: slower, and nothing breaks."""
    lasting = pace.seconds(15, 5)

    async def act(proxy: Proxy, play: Scene) -> str:
        proxy.latency, before = (0.1, 0.3), proxy.accepted
        await asyncio.sleep(lasting)
        proxy.latency = (0.0, 0.0)
        return f"{proxy.accepted - before} reconnects"

    await _through(rig, tmp_path, f"network to the broker: 100 to 300 ms each way, {lasting} s", record, act)


async def test_network_sliced(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Everything arrives in pieces of 7 bytes: frames are put together right."""
    lasting = pace.seconds(8, 4)

    async def act(proxy: Proxy, play: Scene) -> str:
        proxy.piece, before = 7, proxy.accepted
        await asyncio.sleep(lasting)
        proxy.piece = 65536
        return f"{proxy.accepted - before} reconnects"

    await _through(rig, tmp_path, f"network to the broker: pieces of 7 bytes, {lasting} s", record, act)


async def test_network_silent(rig: Rig, tmp_path: Path, record: Any) -> None:
    """A cut cable: noticed by heartbeats, and by the first publish that is not confirmed."""
    lasting = pace.seconds(40, 25)  # longer than two heartbeats

    async def act(proxy: Proxy, play: Scene) -> str:
        proxy.passing.clear()
        await asyncio.sleep(lasting)
        proxy.passing.set()
        proxy.reset()
        return f"slowest answer {play.driver.slowest:.1f} s"

    await _through(rig, tmp_path, f"network to the broker: silence for {lasting} s", record, act)


async def test_network_resets(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Every connection reset every 2 s: work goes on in between, without a storm of attempts."""
    resets = pace.times(10, 5)

    async def act(proxy: Proxy, play: Scene) -> str:
        before, began = proxy.accepted, time.monotonic()
        for _ in range(resets):
            await asyncio.sleep(2)
            proxy.reset()
        attempts = proxy.accepted - before
        # Two connections for each of three services, and the notifier's one: at most one attempt a second each.
        assert attempts <= 7 * (time.monotonic() - began) + 7
        return f"{attempts} connections made"

    await _through(
        rig, tmp_path, f"network to the broker: all connections reset every 2 s, {2 * resets} s", record, act
    )


@pytest.mark.skipif(not netns.available(), reason="needs root, network namespaces and iptables")
async def test_network_lossy(rig: Rig, tmp_path: Path, record: Any) -> None:
    """5 % of all packets lost in each direction: slower, and nothing breaks."""
    lasting = pace.seconds(15, 8)
    (port,) = lasting_ports(1)
    async with (
        netns.cable() as cable,
        netns.detour(cable, rig.node.ports.amqp, port),
        scene(rig, tmp_path, amqp_host=cable.far, amqp_port=port) as play,
    ):
        async with play.driver.load():
            await asyncio.sleep(1)
            cable.lose(0.05)
            await asyncio.sleep(lasting)
            cable.mend()
        lost = play.system.logs().count("lost the connection")
        await play.end(
            f"network to the broker: 5 % of packets lost, {lasting} s", record, beside=f"{lost} lost connections"
        )
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


# What comes more than once.


async def test_everything_twice_and_shuffled(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Each message of every kind published twice, in a random order: every effect happens once."""
    async with scene(rig, tmp_path) as play:
        for name in ("mailer", "leaderboard"):
            await play.system[name].terminate()
        for _ in range(100):
            await play.driver.mail()
            await play.driver.scores(5)
        await wait_until(lambda: not play.sinks.outbox(), 20, "everything is out")
        copies = await _double(play, "mail.normal") + await _double(play, "leaderboard.scores")
        for name in ("mailer", "leaderboard"):
            play.system[name].start()
        await play.end("every message twice, in a random order", record, runs=copies)


async def _double(play: Scene, queue: str) -> int:
    """Take all messages off a queue and put them back, each twice, shuffled."""
    channel = await play.system.vhost.channel()
    source = await channel.get_queue(queue, ensure=False)
    depth = await play.system.vhost.depth(queue)
    taken = []
    async with asyncio.timeout(20), source.iterator() as messages:
        async for message in messages:
            taken.append(message)
            if len(taken) == depth:
                break
        for message in taken:
            await message.ack()
    await channel.close()
    assert len(taken) >= 100
    both = taken * 2
    random.Random(5).shuffle(both)
    work = await play.system.vhost.channel()
    exchange = await work.get_exchange("work", ensure=False)
    for message in both:
        again = aio_pika.Message(
            message.body, headers=message.headers, delivery_mode=2, type=message.type, message_id=message.message_id
        )
        await exchange.publish(again, queue)
    await work.close()
    return len(both)
