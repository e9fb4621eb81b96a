"""What operators do, and what they let happen: restarts, long nights, full disks, a broker that lost everything."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bellhop.amqp import topology
from tests.faults import pace
from tests.faults.scene import PUBLISH_SECONDS, scene
from tests.faults.system import Rig, allow
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def test_broker_restarted_in_order(rig: Rig, tmp_path: Path, record: Any) -> None:
    """`rabbitmqctl stop_app` and `start_app`, again and again: requests are taken meanwhile, consumers come back."""
    runs = pace.times(5, 2)
    async with scene(rig, tmp_path) as play:
        async with play.driver.load():
            for _ in range(runs):
                await asyncio.sleep(1)
                await rig.rabbitmqctl("stop_app")
                await rig.rabbitmqctl("start_app")
                await wait_until(lambda: play.system["gateway"].is_ready(), 40, "the gateway is ready again")
        await play.end("broker stopped and started in order, under load", record, runs=runs)
        assert play.driver.slowest <= PUBLISH_SECONDS + 1


async def test_broker_away_for_long(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Gone for longer than any client library waits by itself: everybody is back within seconds."""
    gone = pace.seconds(80, 15)
    async with scene(rig, tmp_path) as play:
        rig.kill_broker()
        taken = await asyncio.gather(*(play.driver.mail() for _ in range(200)))
        assert all(taken)
        await asyncio.sleep(gone)
        await rig.start_broker()
        await wait_until(lambda: play.system["gateway"].is_ready(), 40, "the gateway is ready again")
        await play.end(f"broker unavailable for {gone} s", record, beside="200 mails were accepted meanwhile")


async def test_broker_lost_everything(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Its virtual host is deleted and made anew: services wait for the topology; browsers are told of the gap."""
    async with scene(rig, tmp_path) as play:
        await play.driver.notification()
        await play.sinks.settle(play.driver)
        vhost = play.system.vhost
        assert (await vhost.management.delete(f"/api/vhosts/{vhost.name}")).is_success
        taken = await asyncio.gather(*(play.driver.mail() for _ in range(50)))
        assert all(taken), "a mail is a row, and waits in the outbox"
        await vhost.create()
        await asyncio.sleep(3)
        await vhost.apply_topology()
        for user, rights in topology.RIGHTS.items():
            await allow(vhost, user, rights)
        await wait_until(lambda: play.system["gateway"].is_ready(), 60, "the gateway is ready again")
        await play.end(
            "broker's virtual host deleted and created again", record, gaps=1, beside="the stream reported its gap"
        )


# What is put in, and what is missing: a queue, or the binding of the stream, whose deletion would be a gap for readers.
REQUIRED = {
    "outcomes": ("mail", "queues/{vhost}/gateway.outcomes"),
    "scores": ("scores", "queues/{vhost}/leaderboard.scores"),
    "notifications": ("notification", "bindings/{vhost}/e/notifications/q/notifier.log/~"),
    "reactions": ("order", "queues/{vhost}/mailer.reactions"),
}


@pytest.mark.parametrize("what", REQUIRED)
async def test_a_required_queue_is_missing(what: str, rig: Rig, tmp_path: Path, record: Any) -> None:
    """While a queue of somebody else's gets every event: nothing is confirmed falsely, all of it arrives once."""
    put_in, path = REQUIRED[what]
    async with scene(rig, tmp_path) as play:
        vhost = play.system.vhost
        channel = await vhost.channel()
        await (await channel.declare_queue("theirs", durable=True)).bind("events", "#")
        await play.driver.until_reacts_to("order.placed")
        assert (await vhost.management.delete(f"/api/{path.format(vhost=vhost.name)}")).is_success
        taken = await asyncio.gather(*(getattr(play.driver, put_in)() for _ in range(30)))
        assert all(taken)
        await asyncio.sleep(3)
        waiting = play.sinks.outbox()
        await vhost.apply_topology()
        await channel.queue_delete("theirs")
        await play.end(f"queue of {what} missing for 3 s", record, beside=f"{waiting} messages waited in the outbox")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk")
async def test_disk_full(rig: Rig, tmp_path: Path, record: Any) -> None:
    """The disk of all databases and logs is full: 503 or nothing lost, and on it goes when there is room."""
    full = pace.seconds(10, 5)
    with small_disk(tmp_path / "disk") as disk:
        async with scene(rig, disk) as play:
            async with play.driver.load(workers=4):
                await asyncio.sleep(1)
                fill(disk / "ballast")
                await wait_until(lambda: bool(play.driver.statuses["503"]), 20, "a request is refused")
                await asyncio.sleep(full)
                (disk / "ballast").unlink()
            refused = play.driver.statuses["503"]
            await play.end(f"disk of databases and logs full for {full} s", record, beside=f"{refused} answers 503")


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of 64 MB on `folder`, until the block ends."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "bellhop-test", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Write until there is no room left."""
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return
