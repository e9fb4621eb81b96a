"""How long a mail takes at 200 a second: from POST /v1/mail to the mail in the hand of the SMTP server.

    python -m bench.latency                     # 20 s, after 3 s of warming up
    python -m bench.latency --rate 500 --seconds 10

The whole system works: gateway, broker, one mailer. Requests leave at their time whether earlier ones are answered or
not (an open loop), and the SMTP server is in the same process as they are, so that one clock measures: from the POST
written to the final dot read. The server answers at once. Printed beside it is what it is made of:

    POST -> 202       the gateway: validation, and a commit with `synchronous=FULL`
    202 -> mail       the relay's publish, the broker, the mailer's claim, SMTP
    a sync            of 4 KB in the same folder, twenty times a second meanwhile: a mail waits for three, of the
                      gateway's commit, of the quorum queue, and of the mailer's claim
    CPU               of a core, that gateway and mailer used
"""

import argparse
import asyncio
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
import uvloop

from bench import load, stage
from bench.sink import Sink

WARM_UP = 3.0
PATIENCE = 30.0
WANTED = {0.5: 20, 0.99: 100}
TEXT = "Hello Ada, welcome aboard. " * 8


def requests(gateway: stage.Gateway, count: int) -> Iterator[bytes]:
    """Yield requests, each for a recipient of its own."""
    for number in range(count):
        mail = {"to": f"{number}@example.com", "subject": "Welcome", "text": TEXT}
        yield load.request("POST", "/v1/mail", orjson.dumps(mail), **gateway.headers())


@dataclass
class Run:
    """What was measured, but for the warming up."""

    arrivals: list[load.Arrival]
    came: dict[int, float]
    """When the mail of each request came, a time of `time.perf_counter`."""
    syncs: list[float]
    """Seconds."""
    cpu: dict[str, float]
    """Share of a core."""


async def measure(place: stage.Stage, rate: float, seconds: float) -> Run:
    """Run the system and send."""
    came: dict[int, float] = {}
    syncs: list[float] = []

    def took(recipient: str) -> None:
        came.setdefault(int(recipient.partition("@")[0]), time.perf_counter())

    server = await asyncio.get_running_loop().create_server(lambda: Sink(took), "127.0.0.1", 0)
    smtp_port = server.sockets[0].getsockname()[1]
    # Services are started by code that blocks; nothing of ours is due meanwhile but what the mailer asks the server.
    with stage.gateway(place) as gateway, stage.mailer(place, smtp_port) as (_, mailer):
        count = round(rate * (WARM_UP + seconds))
        syncing = asyncio.create_task(sync_disk(place.folder, syncs))
        used = {"gateway": -stage.cpu([gateway.pid]), "mailer": -stage.cpu([mailer.pid])}
        arrivals = await load.steady(gateway.port, requests(gateway, count), rate)
        deadline = time.monotonic() + PATIENCE
        while len(came) < count and time.monotonic() < deadline:  # noqa: ASYNC110 - filled by a callback
            await asyncio.sleep(0.02)
        for name, pid in (("gateway", gateway.pid), ("mailer", mailer.pid)):
            used[name] = (used[name] + stage.cpu([pid])) / (WARM_UP + seconds)
        syncing.cancel()
    server.close()
    refused = [arrival.status for arrival in arrivals if arrival.status != 202]
    if refused or len(came) < count:
        raise SystemExit(f"{len(refused)} of {count} mails were refused {set(refused)}, {len(came)} came")
    first = count - round(rate * seconds)
    kept = {number - first: at for number, at in came.items() if number >= first}
    return Run(arrivals[first:], kept, syncs, used)


async def sync_disk(folder: Path, took: list[float]) -> None:
    """Add to `took` how long each sync of a small write takes, until cancelled."""

    def sync(file: BinaryIO) -> float:
        file.write(bytes(4096))
        began = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - began

    with (folder / "sync").open("wb", buffering=0) as file:
        while True:
            took.append(await asyncio.to_thread(sync, file))
            await asyncio.sleep(0.05)


def show(name: str, seconds: list[float], wanted: dict[float, int]) -> None:
    """Print one line, in ms."""
    marks = {share: f" (wanted {limit})" for share, limit in wanted.items()}
    parts = [f"p{share * 100:g} {stage.percentile(seconds, share) * 1000:6.1f}{marks.get(share, '')}"
             for share in (0.5, 0.9, 0.99)]  # fmt: skip
    print(f"{name:16}{'  '.join(parts)}  max {max(seconds) * 1000:6.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="mails a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    print(stage.heading())
    with stage.broker() as place:
        run = uvloop.run(measure(place, asked.rate, asked.seconds))
    arrivals, came = run.arrivals, run.came
    late = max(arrival.sent - arrival.due for arrival in arrivals)
    print(f"{len(arrivals):,} mails at {asked.rate:g}/s; the latest left {late * 1000:.1f} ms after its time")
    show("POST -> mail", [came[n] - arrival.sent for n, arrival in enumerate(arrivals)], WANTED)
    show("POST -> 202", [arrival.answered - arrival.sent for arrival in arrivals], {})
    show("202 -> mail", [came[n] - arrival.answered for n, arrival in enumerate(arrivals)], {})
    show("a sync", run.syncs, {})
    print(f"{'CPU':16}" + "  ".join(f"{name} {share:.0%}" for name, share in run.cpu.items()))


if __name__ == "__main__":
    main()
