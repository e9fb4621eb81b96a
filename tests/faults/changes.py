"""What a fork of `zygote.py` changes in itself before it becomes a service: nothing of this is in the product.

First the times that would make a test long: they are scaled down, the code that waits stays what it is. Then the
mutants: each breaks one promise on purpose, and the suite must notice.
"""

import datetime
import sys
import time
from dataclasses import replace
from typing import Any

from bellhop.amqp import retry


def hurry() -> None:
    """Leases run out, the retry ladder comes back, and lowered rates climb, in seconds instead of minutes."""
    from bellhop.tasks import adaptive_rate, heartbeats
    from services.gateway.outbox import store as outbox
    from services.mailer import app, handlers

    outbox.LEASE_MS = 3000
    heartbeats.LEASE_SECONDS = 2.5
    app.JOBS = tuple(replace(job, seconds=0.6) if job.name == "heartbeat" else job for job in app.JOBS)
    handlers.DEFERRAL_SECONDS = (1.0,)
    adaptive_rate.SETTLE_SECONDS, adaptive_rate.CLIMB_SECONDS, adaptive_rate.CLIMBED_SECONDS = 0.25, 2.0, 6.0
    retry.expiration_ms = lambda retry_queue: 1000  # type: ignore[assignment]
    from bellhop.amqp.handling import retry as handling

    handling.expiration_ms = retry.expiration_ms


# What the machine is made to be


def hour_ahead() -> None:
    """Let the wall clock be an hour ahead; the monotonic clock stays right."""
    seconds, real, real_ns = 3600, time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + seconds * 1_000_000_000

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime.datetime)

    class Ahead(datetime.datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return datetime.datetime.fromtimestamp(time.time(), tz)

    for name, module in list(sys.modules.items()):
        if name.startswith(("bellhop.", "services.")) and getattr(module, "datetime", None) is datetime.datetime:
            module.datetime = Ahead  # type: ignore[attr-defined]


def no_bulk() -> None:
    """Let the mailer leave the lane `bulk` alone."""
    from services.mailer import app

    queues = app.queues
    app.queues = lambda mailer: [row for row in queues(mailer) if row.name != "mail.bulk"]


# Mutants


def auto_ack() -> None:
    """Take messages as done the moment they are handed out."""
    from pika.channel import Channel

    from bellhop.amqp import batches, consumer

    consume = Channel.basic_consume

    def careless(self: Channel, queue: str, on_message: Any, auto_ack: bool = False, **more: Any) -> str:
        return consume(self, queue, on_message, auto_ack=True, **more)

    Channel.basic_consume = careless
    Channel.basic_ack = lambda *_, **__: None
    Channel.basic_nack = lambda *_, **__: None
    consumer.settle = batches.settle = lambda *_, **__: None  # type: ignore[attr-defined]


def no_inbox() -> None:
    """Remember nothing of what was done."""
    from bellhop.tasks.claims import Claim, ClaimDecision
    from bellhop.tasks.inbox import Inbox
    from services.leaderboard.store import Store

    async def claim(self: Inbox, key: Any, attempt: int) -> Claim:
        return Claim(ClaimDecision.RUN)

    async def record(self: Inbox, result: Any) -> None:
        return None

    async def everything(self: Store, connection: Any, keys: list[tuple[str, str]], at: int) -> set[tuple[str, str]]:
        return set(keys)

    Inbox.claim, Inbox.record = claim, record  # type: ignore[method-assign]
    Store.claim_messages = Store.claim_scores = everything  # type: ignore[method-assign]


def synchronous_normal() -> None:
    """Commit without waiting for the disk."""
    _synchronous("NORMAL")


def synchronous_off() -> None:
    """Never wait for the disk."""
    _synchronous("OFF")


def _synchronous(level: str) -> None:
    from bellhop.sql import database

    database.SQLITE_PRAGMAS = tuple(
        f"PRAGMA synchronous={level}" if pragma.startswith("PRAGMA synchronous") else pragma
        for pragma in database.SQLITE_PRAGMAS
    )


def forgetful_release() -> None:
    """Take a message that was published without a confirm for one that was not."""
    from services.gateway.outbox import store
    from services.gateway.outbox.publisher import OutboxPublisher

    claim = store.claim

    async def claim_others(connection: Any, destination: store.Destination, limit: int) -> list[store.Entry]:
        # So that a cancel finds the row as it was released.
        return [] if destination[1] == "mail.normal" else await claim(connection, destination, limit)

    OutboxPublisher._release_reason = lambda self, error: store.ReleaseReason.UNSENT  # type: ignore[method-assign]
    store.claim = claim_others


def no_second_question() -> None:
    """Never ask again for a task whose outcome does not come."""
    from services.gateway.tasks.overdue import StaleTasks

    async def nothing(self: StaleTasks) -> float:
        return 60.0

    StaleTasks.round = nothing  # type: ignore[method-assign]
