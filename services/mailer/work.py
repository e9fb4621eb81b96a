"""What all handlers share: decoding, reporting, and waiting for a dependency."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from pydantic import ValidationError

from bellhop.amqp.errors import PublishError, Reject
from bellhop.amqp.message import Delivery
from bellhop.contracts.base import Contract
from bellhop.contracts.outcomes import Outcome
from bellhop.sql.database import DatabaseUnavailable
from services.mailer import outcomes
from services.mailer.parts import Mailer

PATIENCE = 900.0
"""How long a delivery waits, in seconds, for a database or broker that is away. Under RabbitMQ's consumer timeout of 30
minutes; not shorter, because a mail that went out unrecorded goes out again, and because each return to the queue
counts against the message on RabbitMQ before 4.0."""

C = TypeVar("C", bound=Contract)
R = TypeVar("R")


async def report(mailer: Mailer, delivery: Delivery, outcome: Outcome, body: bytes | None = None) -> None:
    body = body or outcome.model_dump_json(exclude_none=True).encode()
    traceparent = delivery.envelope.traceparent
    await patiently(mailer, lambda: outcomes.report(mailer.publisher, outcome, body, traceparent))


async def patiently(mailer: Mailer, action: Callable[[], Awaitable[R]]) -> R:
    """Return what `action` returns, as soon as the database or the broker that it needs is there."""
    patience: Patience | None = None
    while True:
        try:
            return await action()
        except (DatabaseUnavailable, PublishError) as error:
            patience = patience or Patience(mailer)
            await patience.pause(error)


class Patience:
    """Wait a second at a time, until it has been too long or this process is to end."""

    def __init__(self, mailer: Mailer) -> None:
        self._stopping = mailer.stopping
        self._deadline = time.monotonic() + PATIENCE

    async def pause(self, error: Exception) -> None:
        """Wait a little; raise `error` where waiting any longer makes no sense."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), 1.0)
        if self._stopping.is_set() or time.monotonic() > self._deadline:
            raise error


def decode(contract: type[C], delivery: Delivery) -> C:
    try:
        return contract.read(delivery.body)
    except ValidationError as error:
        raise Reject(f"not a {contract.__name__}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
