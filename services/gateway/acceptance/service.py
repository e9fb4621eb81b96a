"""Accept requests: after a 2xx their effects are durable, and a repeated request has no second effect."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request
from starlette.responses import Response

from bellhop import faults
from bellhop.amqp.publisher import Publisher
from bellhop.observe import traces
from bellhop.sql.group_commit import GroupCommit
from bellhop.web.auth import Caller
from bellhop.web.problems import Problem, invalid, unavailable
from services.gateway.acceptance.keys import conflict, key_of
from services.gateway.outbox.entry_publisher import EntryPublisher
from services.gateway.outbox.publisher import OutboxPublisher
from services.gateway.outbox.store import Entry
from services.gateway.tasks import store as ledger
from services.gateway.tasks.store import Acceptance, Accepted

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(slots=True)
class Intake:
    """Accepts requests: with a commit to the ledger, or by publishing directly, with the outbox as the fallback."""

    commits: GroupCommit
    outbox_publisher: OutboxPublisher
    publisher: Publisher
    entry_publisher: EntryPublisher
    outbox_limit: int
    accept: Callable[[AsyncConnection, list[Acceptance]], Awaitable[list[Accepted]]] = ledger.accept
    """`SuppressionStore.accept`, which checks the addresses first."""

    async def commit(self, acceptance: Acceptance) -> Accepted:
        """Write everything in one commit; its messages are published afterwards.

        Raises:
            Problem: 422 when the idempotency key belongs to another request; 503 when the outbox is full.
            DatabaseUnavailable: nothing was committed, or the commit status is unknown; clients get 503.
        """
        self.check_room()
        accepted = await self.commits.write(self.accept, acceptance)
        faults.point("accept.committed")
        if accepted.conflict:
            raise conflict()
        if accepted.new and acceptance.claimed and accepted.goes_out:
            self.outbox_publisher.hand_over(acceptance.entries)
        return accepted

    def check_room(self) -> None:
        """Raise Problem 503 when the outbox is full."""
        if self.outbox_publisher.waiting > self.outbox_limit:
            raise unavailable(
                f"{self.outbox_publisher.waiting} messages wait for RabbitMQ already, and more cannot be kept."
            )

    async def publish(self, request: Request, caller: Caller, entries: list[Entry], answer: bytes) -> Response:
        """Answer 202 once every event is durable: each destination confirmed it, or the outbox holds it.

        Raises Problem and DatabaseUnavailable as `commit` does.
        """
        key = await key_of(request, caller)
        if key is not None:
            # The key needs a commit, so the messages are written in the same one.
            acceptance = Acceptance(answer, entries=list(map(self.entry_publisher.grouped, entries)), key=key)
            return answer_202(await self.commit(acceptance))
        if not self.entry_publisher.ready:
            raise unavailable("The gateway has just started and does not know yet where events go.")
        results = await asyncio.gather(*map(self.entry_publisher.publish, entries))
        kept = [self.entry_publisher.grouped(rest) for result in results for rest in result.left]
        faults.point("accept.published")
        if kept:
            await self.commit(Acceptance(answer, entries=kept, claimed=False))
        return answer_202(Accepted(answer, new=True))


def answer_202(accepted: Accepted, location: str | None = None) -> Response:
    """Return the answer of an accepted request, the same for each repetition."""
    headers = {} if location is None else {"Location": location}
    if not accepted.new:
        headers["Idempotency-Replay"] = "true"
    return Response(accepted.answer, 202, headers, "application/json")


def invalid_body(error: ValidationError, *, prefix: tuple[int | str, ...] = (), skip: int = 0) -> Problem:
    """Return the 422 for a body that a route reads by itself; `prefix` and `skip` correct the place of each field."""
    return invalid([{**each, "loc": ("body", *prefix, *each["loc"][skip:])} for each in error.errors()])


def traceparent(request: Request) -> str | None:
    """Return the W3C trace context of our span of this request, or else the valid one in its header."""
    if traces.tracer is not None and (ours := traces.current()) is not None:
        return ours
    value = request.headers.get("traceparent")
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None
