"""How many mails a mailer process sends, queue -> SMTP -> outcome confirmed, beside Celery with smtplib.

    python -m bench.mail                        # 20,000 mails on mail.normal
    python -m bench.mail --processes 2 --lane bulk --connections 40 --no-pipelining --no-peer

What is compared: so many mailer processes (one, unless told otherwise) beside as many Celery worker processes
(`celery worker -c 1`: its main process, and one child that sends); then beside twice as many. Each is measured with a
connection for each mail, as most applications do it, and, as many processes as ours, with one that each process keeps.
The mails, the broker and the SMTP server (Postfix's smtp-sink, see bench/sink.py) are the same.

The queue is filled first, then the mailers are started and what is done is counted while they work. Celery stores no
result; Bellhop commits a claim and a result for each mail, and is counted when the broker has confirmed its outcomes.
Printed are

    mails/s         between the first tenth and the end
    us CPU/mail     user and system time of the mailers, over the same time
    p50, p99        of one attempt on the wire, from the mailer's own metrics
"""

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import aio_pika

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.tasks import Lane
from bellhop.local import processes
from bellhop.local.ports import free_ports
from bench.sink import smtp_sink
from bench.stage import Stage, broker, cpu, environment, heading, mailer

CELERY = "celery==5.7.*"
PEER = Path(__file__).parent / "mail_peers"
TEXT = "Hello,\n\nyour order is on its way.\n" + "It will be there soon. " * 20 + "\n"
TIMEOUT = 300.0


async def fill(url: str, lane: Lane, mails: int) -> None:
    """Put `mails` tasks on their queue, as the gateway's outbox publisher does."""
    connection = Connection(url, "bench")
    publisher = Publisher(connection)
    await connection.start()
    await connection.wait_open(10)
    while publisher.failure:  # noqa: ASYNC110 - the channel opens a moment after the connection
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
            await publisher.publish("work", MAIL.queues[lane], Message(body.encode(), envelope))

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


def bellhop(stage: Stage, smtp_port: int, asked: argparse.Namespace) -> float:
    """Measure our mailer; return mails/s."""
    began = time.monotonic()
    asyncio.run(fill(stage.amqp_url, asked.lane, asked.mails))
    print(f"filled {MAIL.queues[asked.lane]}: {asked.mails / (time.monotonic() - began):,.0f}/s")
    with contextlib.ExitStack() as stack:
        connections = str(asked.connections)
        mailers = [
            stack.enter_context(mailer(stage, smtp_port, smtp_connections=connections)) for _ in range(asked.processes)
        ]
        pids = [running.pid for _, running in mailers]
        rate, cost = asyncio.run(
            watch(stage.amqp_url, "gateway.outcomes", asked.mails, rising=True, pids=pids, py_spy=asked.profile)
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{mailers[0][0]}/metrics") as answer:
            metrics = answer.read().decode()
    wire = ", ".join(f"{name} <= {value:g} ms" for name, value in percentiles(metrics).items())
    print(f"{name(asked.processes, 'mailer process')}: {rate:,.0f} mails/s, {cost * 1e6:,.0f} us CPU/mail, {wire}")
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


def name(count: int, what: str) -> str:
    """Return "1 process", "2 processes"."""
    return f"{count} {what}{'es' if count > 1 else ''}"


def celery(stage: Stage, smtp_port: int, programs: Path, mails: int, *, workers: int, kept: bool) -> float:
    """Measure Celery with so many worker processes; return mails/s."""
    variables = os.environ | {
        "BENCH_AMQP_URL": stage.amqp_url,
        "BENCH_SMTP_PORT": str(smtp_port),
        "BENCH_SMTP_KEPT": "1" if kept else "0",
        "BENCH_TEXT": TEXT,
    }
    subprocess.run(
        [str(programs / "python"), "celery_mail.py", "fill", str(mails)], cwd=PEER, env=variables, check=True
    )
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel", "WARNING"]
    worker = subprocess.Popen(
        [str(programs / "celery"), "-A", "celery_mail", "worker", "-c", str(workers), *quiet],
        cwd=PEER, env=variables | {"C_FORCE_ROOT": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=processes.ends_with_us(),
    )  # fmt: skip
    try:
        rate, cost = asyncio.run(watch(stage.amqp_url, "celery-mail", mails, rising=False, pids=[worker.pid]))
    finally:
        worker.terminate()
        worker.wait(20)
    how = "one connection kept" if kept else "a connection for each mail"
    who = f"{name(workers, 'Celery worker process')} with smtplib, {how}"
    print(f"{who}: {rate:,.0f} mails/s, {cost * 1e6:,.0f} us CPU/mail")
    return rate


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
    smtp_port = free_ports(1)[0]
    print(heading())
    with broker() as stage, smtp_sink(smtp_port, asked.smtp_sink, pipelining=not asked.no_pipelining):
        ours = bellhop(stage, smtp_port, asked)
        if asked.no_peer:
            return
        programs = environment(stage.folder, CELERY)
        wanted = " (wanted 8)"
        for times, kept in ((1, False), (1, True), (2, False)):
            workers = times * asked.processes
            theirs = celery(stage, smtp_port, programs, asked.peer_mails, workers=workers, kept=kept)
            print(f"    ratio {ours / theirs:.1f}{wanted}")
            wanted = ""


if __name__ == "__main__":
    main()
