"""What is accepted reaches its effect: beside a full lane, with a wrong clock, between foreign messages."""

import asyncio
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import CHANNEL
from tests.faults.scene import Scene, scene
from tests.faults.sinks import looking_into
from tests.faults.system import Rig
from tests.faults.test_under_load import _limit
from tests.support import wait_until
from tests.support.raw import Raw, field, publish, text

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


async def test_a_full_lane_beside_urgent_mail(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Urgent mail goes out while 300 bulk mails find their lane full, and the gateway does not try without a pause."""
    async with scene(rig, tmp_path) as play:
        mailer = play.system["mailer"]
        await mailer.terminate()
        mailer.changes = ("hurry", "no_bulk")
        mailer.start()
        await _limit(play, "mail.bulk", 20)
        await asyncio.gather(*(play.driver.mail("bulk") for _ in range(300)))
        await wait_until(lambda: _refusals(play) > 0, 20, "the lane refuses")
        bulk = set(play.driver.books.accepted["mail"])
        before, ticks = _refusals(play), _ticks(play)
        slowest = 0.0
        for _ in range(10):
            slowest = max(slowest, await play.sinks.probe(play.driver, 10))
            await asyncio.sleep(0.5)
        refused, ticks = _refusals(play) - before, _ticks(play) - ticks
        assert not bulk & set(play.sinks.mails())
        await mailer.terminate()
        mailer.changes = ("hurry",)
        mailer.start()
        await play.end(
            "lane bulk full, urgent mail beside it", record,
            beside=f"slowest urgent mail {slowest:.1f} s, {refused} publishes refused meanwhile",
        )  # fmt: skip
        assert refused <= 600, "the back-off doubles: 20 messages a probe"
        assert ticks < 400, "hundredths of a second of processor time, most of it for the tests' own requests"


def _refusals(play: Scene) -> int:
    """Count the publishes that RabbitMQ refused, of what is still in the outbox."""
    with looking_into(play.system.database("gateway")) as database:
        return int(database.execute("SELECT coalesce(sum(refusals), 0) FROM outbox").fetchone()[0])


def _ticks(play: Scene) -> int:
    """Return the processor time of the gateway so far."""
    fields = Path(f"/proc/{play.system['gateway'].pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_a_gateway_whose_clock_is_an_hour_ahead(rig: Rig, tmp_path: Path, record: Any) -> None:
    """What it stored then, claims among it, does not wait for an hour when the clock is right again."""
    async with scene(rig, tmp_path) as play:
        gateway = play.system["gateway"]
        await gateway.terminate()
        gateway.changes = ("hurry", "hour_ahead")
        gateway.start()
        await gateway.ready()
        async with play.driver.load(workers=4):
            await asyncio.sleep(3)
            rig.kill_broker()
            await asyncio.sleep(2)
            gateway.kill()  # rows claimed by its clock are in the outbox
            gateway.changes = ("hurry",)
            gateway.start()
            await rig.start_broker()
            await gateway.ready()
        await play.end("gateway's clock an hour ahead, then right", record)


FOREIGN = {
    "a time in microseconds": Raw(timestamp=1_764_000_000_000_000),
    "a time that no calendar has": Raw(timestamp=2**63 - 1),
    "a name of no text": Raw(text(b"\xff\xfe", b"value")),
    "a field of no kind": Raw(field(b"n", b"T", struct.pack(">Q", 2**63 - 1))),
    "a decimal": Raw(field(b"d", b"D", struct.pack(">Bi", 255, 2**31 - 1))),
    "a type of no text": Raw(type=b"\xff\xfe"),
}


async def test_foreign_messages_on_the_stream(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Between notifications lie messages that no client library reads: each notification is shown once."""
    rounds = 20
    async with scene(rig, tmp_path) as play:
        url = play.system.vhost.amqp_url
        for number in range(rounds):
            assert await play.driver.notification()
            for properties in FOREIGN.values():
                await asyncio.to_thread(publish, url, "notifications", CHANNEL, properties)
            if number == rounds // 2:
                await play.system.restart("notifier")
        await play.system.all_ready()
        await play.end(
            "foreign messages between notifications on the stream", record, runs=rounds * len(FOREIGN)
        )  # fmt: skip
