"""How many mails one mailer process sends: queue -> SMTP -> outcome confirmed, against Postfix's smtp-sink.

    python bench/mail.py                        # 20,000 mails on mail.normal
    python bench/mail.py --mails 50000 --lane bulk --connections 40 --no-pipelining

`smtp-sink` comes with Postfix (`apt-get install postfix`; its daemon need not run). The queue is filled first, then
one `python -m services.mailer` is started and the outcomes that the broker has confirmed are counted while it works.
Printed are

    mails/s         between the first and the last outcome seen, over all but the first 10 %
    us CPU/mail     user and system time of the mailer process, over the same time
    p50, p99        of one attempt on the wire, from the mailer's own metrics
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import aio_pika

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.cli.node import Node, Ports
from bellhop.cli.ports import free_ports
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import Lane

ROOT = Path(__file__).parent.parent
TEXT = "Hello,\n\nyour order is on its way.\n" + "It will be there soon. " * 20 + "\n"


@contextlib.contextmanager
def smtp_sink(binary: str, port: int, *, pipelining: bool) -> Iterator[None]:
    command = [binary, *([] if pipelining else ["-p"])]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    process = subprocess.Popen([*command, f"127.0.0.1:{port}", "256"])
    try:
        yield
    finally:
        process.terminate()
        process.wait(5)


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    node = Node(folder, Ports(*free_ports(5)), {"deploy": "bench"})
    node.launch()
    try:
        node.wait_ready()
        yield node.amqp_url("deploy")
    finally:
        node.kill()


async def fill(url: str, lane: Lane, mails: int) -> None:
    """Put `mails` tasks on their queue, as the gateway's relay does."""
    connection = Connection(url, "bench")
    publisher = Publisher(connection)
    await connection.start()
    await connection.wait_open(10)
    while publisher.trouble:  # noqa: ASYNC110 - the channel opens a moment after the connection
        await asyncio.sleep(0.01)
    text = TEXT.replace("\n", "\\n")

    async def some(count: int) -> None:
        for _ in range(count):
            task_id = new_id()
            body = (
                f'{{"subject":"Your order","text":"{text}","task_id":"{task_id}","owner":"bench",'
                f'"to":"ada@example.com","lane":"{lane.value}"}}'
            )
            envelope = Envelope(type="mail.requested", source="/bench", subject=task_id)
            await publisher.publish("work", lane.queue, Message(body.encode(), envelope))

    await asyncio.gather(*(some(mails // 500) for _ in range(500)))
    await connection.close()


async def watch(url: str, mails: int, pid: int, py_spy: str | None, timeout: float = 120) -> tuple[float, float]:
    """Return mails/s, and seconds of CPU per mail, from a tenth of the way on."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        begun: tuple[float, int, float] | None = None
        profiler: asyncio.subprocess.Process | None = None
        deadline = time.monotonic() + timeout
        while True:
            declared = await channel.declare_queue("gateway.outcomes", passive=True)
            count, now = declared.declaration_result.message_count or 0, time.monotonic()
            if begun is None and count >= mails / 10:
                begun = now, count, cpu(pid)
                if py_spy is not None:
                    arguments = [
                        "record",
                        "--gil",
                        "-r",
                        "400",
                        "-p",
                        str(pid),
                        "-d",
                        "5",
                        "-f",
                        "raw",
                        "-o",
                        "bench-mail.raw",
                    ]
                    profiler = await asyncio.create_subprocess_exec(py_spy, *arguments)
            if begun is not None and count >= mails:
                made = count - begun[1]
                rate, cost = made / (now - begun[0]), (cpu(pid) - begun[2]) / made
                if profiler is not None:
                    await profiler.wait()
                return rate, cost
            if now > deadline:
                raise SystemExit(f"only {count} of {mails} outcomes after {timeout:g} s")
            await asyncio.sleep(0.05)


def percentiles(metrics: str) -> dict[str, float]:
    """Read upper bounds of p50 and p99, in ms, from the histogram."""
    buckets = [
        (float(bound), float(count))
        for bound, count in re.findall(r'bellhop_mailer_send_seconds_bucket\{le="([^"]+)"\} (\S+)', metrics)
    ]
    total = buckets[-1][1]
    return {
        name: next(bound for bound, count in buckets if count >= share * total) * 1000
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mails", type=int, default=20_000)
    options.add_argument("--lane", type=Lane, default=Lane.NORMAL)
    options.add_argument("--connections", type=int, default=20)
    options.add_argument("--no-pipelining", action="store_true")
    options.add_argument("--smtp-sink", default=shutil.which("smtp-sink") or "/usr/sbin/smtp-sink")
    options.add_argument("--profile", metavar="PY_SPY", help="path of py-spy; writes bench-mail.raw")
    asked = options.parse_args()
    if not Path(asked.smtp_sink).exists():
        raise SystemExit(f"{asked.smtp_sink} is not there: apt-get install postfix, or say --smtp-sink PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smtp_port, http_port = free_ports(2)
        with broker(folder / "node") as url, smtp_sink(asked.smtp_sink, smtp_port, pipelining=not asked.no_pipelining):
            began = time.monotonic()
            asyncio.run(fill(url, asked.lane, asked.mails))
            print(f"filled {asked.lane.queue}: {asked.mails / (time.monotonic() - began):,.0f}/s")
            environment = os.environ | {
                "BELLHOP_AMQP_URL": url,
                "BELLHOP_DATABASE_URL": f"sqlite+aiosqlite:///{folder}/mailer.db",
                "BELLHOP_TOKEN_KEY": "0" * 32,
                "BELLHOP_PORT": str(http_port),
                "BELLHOP_SMTP_HOST": "127.0.0.1",
                "BELLHOP_SMTP_PORT": str(smtp_port),
                "BELLHOP_SMTP_TLS": "none",
                "BELLHOP_SMTP_CONNECTIONS": str(asked.connections),
                "BELLHOP_MAIL_FROM": "hello@bellhop.example",
                "BELLHOP_LOG_LEVEL": "warning",
            }
            mailer = subprocess.Popen([sys.executable, "-m", "services.mailer"], cwd=ROOT, env=environment)
            try:
                rate, cost = asyncio.run(watch(url, asked.mails, mailer.pid, asked.profile))
                with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/metrics") as answer:
                    metrics = answer.read().decode()
            finally:
                mailer.send_signal(signal.SIGTERM)
                mailer.wait(30)
            print(f"{asked.lane.queue}: {rate:,.0f} mails/s, {cost * 1e6:,.0f} us CPU/mail,", end=" ")
            print(", ".join(f"{name} <= {value:g} ms" for name, value in percentiles(metrics).items()))


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
