"""How many mails a mailer process sends, queue -> SMTP -> outcome confirmed, beside Celery with smtplib.

    python -m bench.mail                        # 20,000 mails on mail.normal, one process each
    python -m bench.mail --processes 2 --lane bulk --connections 40 --no-pipelining --no-peer

Both send to Postfix's `smtp-sink` (`apt-get install postfix`; its daemon need not run) by the same private RabbitMQ.
The queue is filled first, then the mailers are started and what is done is counted while they work. Celery gets a
virtual environment in a temporary folder (by uv or pip). It is measured twice: with a connection for each mail, as
most applications do it, and with one that each process keeps. It stores no result; Bellhop's outcomes are counted
when the broker has confirmed them. Printed are

    mails/s         between the first tenth and the end
    us CPU/mail     user and system time of the mailers, over the same time
    p50, p99        of one attempt on the wire, from the mailer's own metrics
"""

import argparse
import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import aio_pika

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.cli.ports import free_ports
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.mail import Lane
from bench.stage import Stage, broker, heading

CELERY = "celery==5.7.*"
PEER = Path(__file__).parent / "mail_peers"
TEXT = "Hello,\n\nyour order is on its way.\n" + "It will be there soon. " * 20 + "\n"
TIMEOUT = 120.0


def find_sink(path: str = "") -> str:
    """Return the path of `smtp-sink`, or end with a sentence."""
    found = path or shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
    if not Path(found).exists():
        raise SystemExit(f"{found} is not there: apt-get install postfix, or say --smtp-sink PATH")
    return found


@contextlib.contextmanager
def smtp_sink(binary: str, port: int, *, pipelining: bool) -> Iterator[None]:
    """Run the server that all mails go to."""
    command = [binary, *([] if pipelining else ["-p"])]
    if os.geteuid() == 0:
        command += ["-u", "nobody"]
    running = subprocess.Popen([*command, f"127.0.0.1:{port}", "256"])
    try:
        yield
    finally:
        running.terminate()
        running.wait(5)


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


async def depth(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    """Return how many messages of `queue` are ready."""
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def watch(
    url: str, queue: str, mails: int, *, rising: bool, pids: Sequence[int], py_spy: str | None = None
) -> tuple[float, float]:
    """Return mails/s, and seconds of CPU per mail, from a tenth of the way on.

    `rising`: each mail that is done adds to `queue`; else each takes one away. `py_spy` records in bench-mail.raw
    where the time goes meanwhile.
    """
    profiler: asyncio.subprocess.Process | None = None
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        begun: tuple[float, int, float] | None = None
        deadline = time.monotonic() + TIMEOUT
        while True:
            found, now = await depth(channel, queue), time.monotonic()
            done = found if rising else mails - found
            if begun is None and done >= mails / 10:
                begun = now, done, cpu(pids)
                if py_spy is not None:
                    options = ["-r", "400", "-d", "5", "-f", "raw", "-o", "bench-mail.raw", "-p", str(pids[0])]
                    profiler = await asyncio.create_subprocess_exec(py_spy, "record", "--gil", *options)
            if begun is not None and done >= mails:
                made = done - begun[1]
                rate, cost = made / (now - begun[0]), (cpu(pids) - begun[2]) / made
                if profiler is not None:
                    await profiler.wait()
                return rate, cost
            if now > deadline:
                raise SystemExit(f"only {done} of {mails} mails were sent after {TIMEOUT:g} s")
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def mailer(port: int, settings: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run one mailer; it is at work before it says so, and what counts is what it does."""
    names = {f"BELLHOP_{name.upper()}": value for name, value in settings.items()} | {"BELLHOP_PORT": str(port)}
    running = subprocess.Popen([sys.executable, "-m", "services.mailer"], env=os.environ | names)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def mailer_settings(stage: Stage, smtp_port: int) -> dict[str, str]:
    """Return what a mailer needs to send to the sink."""
    return {
        "amqp_url": stage.amqp_url,
        "database_url": f"sqlite+aiosqlite:///{stage.folder}/mailer.db",
        "smtp_host": "127.0.0.1",
        "smtp_port": str(smtp_port),
        "smtp_tls": "none",
        "mail_from": "hello@bellhop.example",
        "log_level": "warning",
    }


def bellhop(stage: Stage, smtp_port: int, asked: argparse.Namespace) -> float:
    """Measure our mailer; return mails/s."""
    began = time.monotonic()
    asyncio.run(fill(stage.amqp_url, asked.lane, asked.mails))
    print(f"filled {asked.lane.queue}: {asked.mails / (time.monotonic() - began):,.0f}/s")
    settings = mailer_settings(stage, smtp_port) | {"smtp_connections": str(asked.connections)}
    with contextlib.ExitStack() as stack:
        ports = free_ports(asked.processes)
        mailers = [stack.enter_context(mailer(port, settings)) for port in ports]
        pids = [mailer.pid for mailer in mailers]
        rate, cost = asyncio.run(
            watch(stage.amqp_url, "gateway.outcomes", asked.mails, rising=True, pids=pids, py_spy=asked.profile)
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics") as answer:
            metrics = answer.read().decode()
    wire = ", ".join(f"{name} <= {value:g} ms" for name, value in percentiles(metrics).items())
    print(f"Bellhop, {asked.processes} process(es): {rate:,.0f} mails/s, {cost * 1e6:,.0f} us CPU/mail, {wire}")
    return rate


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


def celery_environment(folder: Path) -> Path:
    """Make a virtual environment with Celery; return the folder of its programs."""
    venv = folder / "celery"
    python = venv / "bin" / "python"
    if (uv := shutil.which("uv")) is not None:
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), CELERY], check=True)
    else:
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", CELERY], check=True
        )
    return venv / "bin"


def celery(stage: Stage, smtp_port: int, programs: Path, asked: argparse.Namespace, *, kept: bool) -> float:
    """Measure Celery; return mails/s."""
    mails = asked.peer_mails
    environment = os.environ | {
        "BENCH_AMQP_URL": stage.amqp_url,
        "BENCH_SMTP_PORT": str(smtp_port),
        "BENCH_SMTP_KEPT": "1" if kept else "0",
        "BENCH_TEXT": TEXT,
    }
    subprocess.run(
        [str(programs / "python"), "celery_mail.py", "fill", str(mails)], cwd=PEER, env=environment, check=True
    )
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    worker = subprocess.Popen(
        [str(programs / "celery"), "-A", "celery_mail", "worker", "-c", str(asked.processes), *quiet],
        cwd=PEER, env=environment | {"C_FORCE_ROOT": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        rate, _ = asyncio.run(watch(stage.amqp_url, "celery-mail", mails, rising=False, pids=[]))
    finally:
        worker.terminate()
        worker.wait(20)
    how = "one connection kept" if kept else "a connection for each mail"
    print(f"Celery and smtplib, {asked.processes} process(es), {how}: {rate:,.0f} mails/s")
    return rate


def cpu(pids: Sequence[int]) -> float:
    """Return the seconds of CPU that processes have used together."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mails", type=int, default=20_000)
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--lane", type=Lane, default=Lane.NORMAL)
    options.add_argument("--connections", type=int, default=20)
    options.add_argument("--no-pipelining", action="store_true")
    options.add_argument("--no-peer", action="store_true", help="without Celery")
    options.add_argument("--peer-mails", type=int, default=2000)
    options.add_argument("--smtp-sink", default="", metavar="PATH")
    options.add_argument("--profile", metavar="PY_SPY", help="path of py-spy; writes bench-mail.raw")
    asked = options.parse_args()
    sink = find_sink(asked.smtp_sink)
    smtp_port = free_ports(1)[0]
    print(heading())
    with broker() as stage, smtp_sink(sink, smtp_port, pipelining=not asked.no_pipelining):
        ours = bellhop(stage, smtp_port, asked)
        if asked.no_peer:
            return
        programs = celery_environment(stage.folder)
        for kept in (False, True):
            theirs = celery(stage, smtp_port, programs, asked, kept=kept)
            print(f"    Bellhop sends {ours / theirs:.1f} times as many")


if __name__ == "__main__":
    main()
