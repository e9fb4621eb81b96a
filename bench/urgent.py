"""How soon an urgent mail is out while a newsletter is being sent: from its publish to its outcome.

    python -m bench.urgent                      # 100,000 bulk mails before it
    python -m bench.urgent --bulk 20000 --urgent 100

The bulk mails lie on their queue when the mailer starts. Once it is at work, urgent mails follow at 20 a second, and
each is timed until the broker hands out its outcome. The mailer's memory is read at the first and at the last of them.
With Celery, or any single queue, an urgent mail is out after all of the bulk mails.
"""

import argparse
import asyncio
import contextlib
import json
import time

import aio_pika

from bellhop.amqp.connection import Connection
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import new_id
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.tasks import Lane
from bellhop.local.ports import free_ports
from bench.mail import depth, fill
from bench.sink import smtp_sink
from bench.stage import broker, heading, mailer, memory, percentile

A_SECOND = 20
PATIENCE = 60.0


async def send_urgent(url: str, count: int, pid: int) -> tuple[list[float], int, int]:
    """Return seconds from publish to outcome, and the mailer's memory before and after, in bytes."""
    published: dict[str, float] = {}
    done: dict[str, float] = {}
    witness = await aio_pika.connect(url)
    publishing = Connection(url, "bench")
    publisher = Publisher(publishing)
    await publishing.start()
    await publishing.wait_open(10)
    async with witness:
        channel = await witness.channel()
        outcomes = await channel.declare_queue(exclusive=True)
        await outcomes.bind("outcomes", "mail.urgent.sent")

        async def arrived(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            done[json.loads(message.body)["task_id"]] = time.monotonic()

        await outcomes.consume(arrived, no_ack=True)
        while not await depth(channel, "gateway.outcomes"):  # noqa: ASYNC110 - until the mailer is at work
            await asyncio.sleep(0.05)
        before = memory(pid)
        for _ in range(count):
            task_id = new_id()
            task = {"task_id": task_id, "owner": "bench", "to": "ada@example.com", "subject": "Reset", "text": "Now",
                    "lane": "urgent"}  # fmt: skip
            published[task_id] = time.monotonic()
            envelope = Envelope(type="mail.requested", source="/bench", subject=task_id)
            await publisher.publish("work", MAIL.queues[Lane.URGENT], Message(json.dumps(task).encode(), envelope))
            await asyncio.sleep(1 / A_SECOND)
        deadline = time.monotonic() + PATIENCE
        while len(done) < count and time.monotonic() < deadline:  # noqa: ASYNC110 - filled by a callback
            await asyncio.sleep(0.02)
        left = await depth(channel, MAIL.queues[Lane.BULK])
    await publishing.close()
    if len(done) < count:
        raise SystemExit(f"only {len(done)} of {count} urgent mails were out after {PATIENCE:g} s")
    if not left:
        raise SystemExit("the bulk mails were all sent before the urgent ones: say --bulk with more of them")
    print(f"{left:,} bulk mails were still waiting at the end")
    return [done[task_id] - at for task_id, at in published.items()], before, memory(pid)


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--bulk", type=int, default=100_000)
    options.add_argument("--urgent", type=int, default=200)
    options.add_argument("--smtp-sink", default="", metavar="PATH")
    asked = options.parse_args()
    smtp_port = free_ports(1)[0]
    print(heading())
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(broker())
        stack.enter_context(smtp_sink(smtp_port, asked.smtp_sink))
        began = time.monotonic()
        asyncio.run(fill(stage.amqp_url, Lane.BULK, asked.bulk))
        print(f"{asked.bulk:,} bulk mails are on their queue after {time.monotonic() - began:.0f} s")
        _, running = stack.enter_context(mailer(stage, smtp_port))
        seconds, before, after = asyncio.run(send_urgent(stage.amqp_url, asked.urgent, running.pid))
    p50, p99 = (percentile(seconds, share) * 1000 for share in (0.5, 0.99))
    print(f"{len(seconds)} urgent mails behind {asked.bulk:,} bulk ones: p50 {p50:.0f}, p99 {p99:.0f} ms (wanted 1000)")
    print(f"memory of the mailer: {before / 1e6:,.0f} MB, then {after / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
