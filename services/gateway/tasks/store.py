"""The ledger: one row for each task, from the moment it was accepted to the end of its retention.

The functions that take a list are for `GroupCommit`: whatever arrived together is one call and one transaction.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.amqp.message import Message
from bellhop.contracts.addresses import canonical
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import EVENT_OWNER, GATEWAY
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.outcomes import FINAL, Outcome, State
from bellhop.contracts.tasks import CancelTask, Lane
from bellhop.sql.bulk import insert_many, update_many
from bellhop.sql.database import Database
from services.gateway.acceptance import store as idempotency
from services.gateway.acceptance.store import IdempotencyKey
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry, now_ms, to_ms
from services.gateway.tables import attempts, tasks
from services.gateway.tasks.counts import Tally
from services.gateway.tasks.ended import live_entries
from services.gateway.tasks.pages import page_query

Applied = Callable[[AsyncConnection, list[Outcome]], Awaitable[None]]
_FINAL = [state.value for state in FINAL]
_OF_FIRST_OUTCOME = ("document", "event_source", "event_type", "event_time")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Everything that one request writes."""

    answer: bytes
    """The JSON to answer with, now and whenever the request comes again."""
    tasks: list[dict[str, Any]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    key: IdempotencyKey | None = None
    claimed: bool = True
    """Whether this process publishes the entries itself, right after the commit."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """What became of an acceptance."""

    answer: bytes
    new: bool
    """False: the same request was accepted before, and nothing was written now."""
    conflict: bool = False
    """True: another request was accepted before under the same key."""
    goes_out: bool = True
    """False: its messages were not kept, because their address is suppressed."""


def mail_task(
    document: dict[str, Any], packed: bytes, *, created_at: int, send_at: int | None = None
) -> dict[str, Any]:
    """Return the row of a new task; `document` is a `MailTask` as JSON, and `packed` the same as bytes."""
    return {
        "id": document["task_id"],
        "kind": "mail",
        "owner": document["owner"],
        "state": (State.SCHEDULED if send_at else State.QUEUED).value,
        "round": document.get("round", 1),
        "attempt": 0,
        "lane": document.get("lane", Lane.NORMAL.value),
        "recipient": document["to"],
        "address": canonical(document["to"]),
        "template": document.get("template"),
        "event_id": None,
        "document": packed,
        "uncertain": False,
        "created_at": created_at,
        "updated_at": created_at,
        "send_at": send_at,
        "finished_at": None,
    }


def mail_entry(
    document: dict[str, Any], packed: bytes, *, due_at: int = 0, traceparent: str | None = None, attempt: int = 1
) -> Entry:
    """Return the message that makes the mailer do the task of this document."""
    task_id = document["task_id"]
    envelope = Envelope(type="mail.requested", source=GATEWAY, subject=task_id, traceparent=traceparent)
    lane = Lane(document.get("lane", Lane.NORMAL))
    return Entry("work", MAIL.queues[lane], Message(packed, envelope, attempt), task_id, due_at, envelope.id)


def cancel_entry(task_id: str, round_: int, *, state: State = State.CANCELLED, reason: str | None = None) -> Entry:
    """Return the message that asks the mailer not to begin, or not to try again, a round of a task.

    `state` and `reason` are what the task then ends with.
    """
    request = CancelTask(
        task_id=task_id, round=round_, state="suppressed" if state is State.SUPPRESSED else "cancelled", reason=reason
    )
    envelope = Envelope(type="mail.cancelled", source=GATEWAY, subject=task_id)
    return Entry("work", "mail.cancel", Message(request.model_dump_json(exclude_none=True).encode(), envelope))


async def locked_tasks(connection: AsyncConnection, task_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return tasks by id, locked until the end of the transaction (SQLite has one writer anyway)."""
    # In order, so that two replicas that lock the same tasks never wait for each other.
    query = sa.select(tasks).where(tasks.c.id.in_(set(task_ids))).order_by(tasks.c.id).with_for_update()
    return {row["id"]: dict(row) for row in (await connection.execute(query)).mappings()}


async def accept(connection: AsyncConnection, items: list[Acceptance]) -> list[Accepted]:
    """Write tasks, messages and idempotency keys, each request whole or not at all."""
    keyed = [(item.key, item.answer) for item in items if item.key is not None]
    stored = {}
    if keyed:
        keys, answers = zip(*keyed, strict=True)
        stored = await idempotency.store(connection, keys, answers, 202)
    results: list[Accepted] = []
    fresh: list[Acceptance] = []
    for item in items:
        if item.key is not None:
            first = stored[item.key.owner, item.key.key]
            if first.id != item.key.id:
                conflict = first.fingerprint != item.key.fingerprint
                results.append(Accepted(first.answer, new=False, conflict=conflict))
                continue
        fresh.append(item)
        results.append(Accepted(item.answer, new=True))
    await insert_many(connection, tasks, [row for item in fresh for row in item.tasks])
    for claimed in (True, False):
        entries = [entry for item in fresh if item.claimed is claimed for entry in item.entries]
        await outbox.add(connection, entries, claimed=claimed)
    return results


class Ledger:
    """Reads, and the writes that need the database's own dialect."""

    def __init__(self, database: Database, applied: Applied | None = None) -> None:
        """`applied` is called with every list of outcomes, in the transaction that applies them."""
        self._database = database
        self._applied = applied
        self._counts = Tally(self._count)
        self._oldest = Tally(self._look_for_oldest)

    async def apply(self, connection: AsyncConnection, outcomes: list[Outcome]) -> list[str]:
        """Apply outcomes of the mailer, in any order and as often as they come; return the ids of their tasks."""
        await self._apply(connection, outcomes)
        return [outcome.task_id for outcome in outcomes]

    async def end(self, connection: AsyncConnection, outcomes: list[Outcome]) -> None:
        """Apply final outcomes that this gateway decided; those that advance their task are shown live."""
        await outbox.add(connection, live_entries(await self._apply(connection, outcomes)))

    async def _apply(self, connection: AsyncConnection, outcomes: list[Outcome]) -> list[dict[str, Any]]:
        """Apply outcomes; return the task of each outcome that advanced it, with the reply."""
        await self._create_reactions(connection, outcomes)
        places = await self._places(connection, {outcome.task_id for outcome in outcomes})
        moved: dict[str, dict[str, Any]] = {}
        advanced: list[dict[str, Any]] = []
        for outcome in outcomes:
            place = places.get(outcome.task_id)
            if place is not None and advances(place, outcome):
                moved[outcome.task_id] = _moved(place, outcome)
                places[outcome.task_id] = place | moved[outcome.task_id]
                advanced.append(places[outcome.task_id] | {"reply": outcome.reply})
        await update_many(connection, tasks, "id", list(moved.values()))
        made = [_attempt_row(outcome) for outcome in outcomes if _says_more(outcome) and outcome.task_id in places]
        await insert_many(connection, attempts, made, on_conflict=_KEEP_FINAL)
        if self._applied is not None:
            await self._applied(connection, outcomes)
        return advanced

    async def _places(self, connection: AsyncConnection, task_ids: set[str]) -> dict[str, dict[str, Any]]:
        """Return where tasks are, and let no other replica move them meanwhile (SQLite has one writer anyway)."""
        columns = (
            tasks.c.id, tasks.c.round, tasks.c.attempt, tasks.c.state, tasks.c.uncertain,
            tasks.c.owner, tasks.c.lane, tasks.c.recipient, tasks.c.template,
        )  # fmt: skip
        # In order, so that two replicas that lock the same tasks never wait for each other.
        query = sa.select(*columns).where(tasks.c.id.in_(task_ids)).order_by(tasks.c.id).with_for_update()
        return {row["id"]: dict(row) for row in (await connection.execute(query)).mappings()}

    async def _create_reactions(self, connection: AsyncConnection, outcomes: list[Outcome]) -> None:
        """A mail that an event set off has no row until its first outcome."""
        rows = [
            {
                "id": outcome.task_id,
                "kind": "mail",
                "owner": outcome.owner or EVENT_OWNER,
                "state": State.QUEUED.value,
                "round": outcome.round,
                "attempt": 0,
                "lane": outcome.lane or "normal",
                "recipient": outcome.to,
                "address": canonical(outcome.to),
                "template": outcome.template,
                "event_id": outcome.event_id,
                "event_source": outcome.event_source,
                "event_type": outcome.event_type,
                "event_time": None if outcome.event_time is None else to_ms(outcome.event_time),
                "document": None if outcome.document is None else orjson.dumps(outcome.document),
                "uncertain": False,
                "created_at": to_ms(outcome.at),
                "updated_at": to_ms(outcome.at),
                "send_at": None,
                "finished_at": None,
            }
            for outcome in outcomes
            if outcome.event_id is not None and outcome.to is not None
        ]
        if rows:
            insert = self._database.insert(tasks)
            # The first outcome brings the event, and what another round needs; it may come after a later one.
            await connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["id"],
                    set_={name: insert.excluded[name] for name in _OF_FIRST_OUTCOME},
                    where=tasks.c.document.is_(None) & insert.excluded.document.is_not(None),
                ),
                rows,
            )

    async def get(self, task_id: str, owner: str | None = None) -> dict[str, Any] | None:
        """Return the task with its attempts; None where there is none, or it belongs to somebody else."""
        async with self._database.read() as connection:
            query = sa.select(tasks).where(tasks.c.id == task_id)
            if owner is not None:
                query = query.where(tasks.c.owner == owner)
            row = (await connection.execute(query)).mappings().one_or_none()
            if row is None:
                return None
            made = await connection.execute(
                sa.select(attempts).where(attempts.c.task_id == task_id).order_by(attempts.c.round, attempts.c.attempt)
            )
            return {**row, "attempts": [dict(attempt) for attempt in made.mappings()]}

    async def page(
        self,
        *,
        owner: str | None,
        state: str | None = None,
        kind: str | None = None,
        event_id: str | None = None,
        event_source: str | None = None,
        before: tuple[int, str] | None = None,
        limit: int,
    ) -> list[dict[str, Any]]:
        """Return tasks, newest first, without attempts and documents.

        `before`: when the last one of the page before was made, and its id.
        """
        query = page_query(
            owner=owner,
            state=state,
            kind=kind,
            event_id=event_id,
            event_source=event_source,
            before=before,
            limit=limit,
        )
        async with self._database.read() as connection:
            return [dict(row) for row in (await connection.execute(query)).mappings()]

    async def cancel(self, connection: AsyncConnection, items: list[str]) -> list[State]:
        """Cancel tasks; return the state of each: `cancelled`, or another one, which tells why it is not yet.

        What certainly still lies in the outbox is cancelled. What the mailer may have already is asked for: the outcome
        tells who was first.
        """
        locked = await locked_tasks(connection, items)
        return [await self._cancel_one(connection, locked[task_id]) for task_id in items]

    async def _cancel_one(self, connection: AsyncConnection, task: dict[str, Any]) -> State:
        if task["state"] in _FINAL:
            return State(task["state"])
        current = now_ms()
        if await outbox.withdraw(connection, task["id"]):
            ended = {"state": State.CANCELLED.value, "updated_at": current, "finished_at": current}
            task |= ended
            await connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(ended))
            await outbox.add(connection, live_entries([task]))
            return State.CANCELLED
        # Noted, so that a task that has to be asked for again is not sent instead.
        await connection.execute(sa.update(tasks).where(tasks.c.id == task["id"]).values(cancel_requested_at=current))
        await outbox.add(connection, [cancel_entry(task["id"], task["round"])])
        return State(task["state"])

    async def retry(self, connection: AsyncConnection, items: list[str]) -> list[State]:
        """Begin another round of tasks that ended without being sent; return the state of each."""
        locked = await locked_tasks(connection, items)
        return [await self._retry_one(connection, locked[task_id]) for task_id in items]

    async def _retry_one(self, connection: AsyncConnection, task: dict[str, Any]) -> State:
        if task["state"] not in _FINAL or task["state"] == State.SENT or task["document"] is None:
            return State(task["state"])
        document = orjson.loads(task["document"]) | {"round": task["round"] + 1}
        packed = orjson.dumps(document)
        task |= {"state": State.QUEUED.value}
        await connection.execute(
            sa.update(tasks)
            .where(tasks.c.id == task["id"])
            .values(state=State.QUEUED.value, round=document["round"], attempt=0, updated_at=now_ms(),
                    finished_at=None, document=packed, cancel_requested_at=None)
        )  # fmt: skip
        await outbox.add(connection, [mail_entry(document, packed)])
        return State.QUEUED

    async def check(self) -> None:
        """Raise DatabaseUnavailable unless the database answers."""
        await self._database.ping()

    async def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state, as of the last count (`tally.py`)."""
        return await self._counts.get()

    async def _count(self) -> dict[str, int]:
        async with self._database.read() as connection:
            found = await connection.execute(sa.select(tasks.c.state, sa.func.count()).group_by(tasks.c.state))
            return dict(found.all())

    async def oldest_waiting(self) -> dict[str, int]:
        """Return for each lane since when its oldest queued task waits (milliseconds since 1970), as of the last look.

        A queued task is as old as its last change.
        """
        return await self._oldest.get()

    async def _look_for_oldest(self) -> dict[str, int]:
        async with self._database.read() as connection:
            found = await connection.execute(
                sa.select(tasks.c.lane, sa.func.min(tasks.c.updated_at))
                .where(tasks.c.state == State.QUEUED.value)
                .group_by(tasks.c.lane)
            )
            return dict(found.all())


def advances(place: dict[str, Any], outcome: Outcome) -> bool:
    """Say whether `outcome` moves its task forward from `place` (its round, attempt and state).

    Forward is a later round; in one round a later attempt; in one attempt from `sending` to anything, and from
    anything to a final state. A final state ends its round. So outcomes may come late, twice and mixed up.
    """
    if outcome.round != place["round"]:
        return outcome.round > int(place["round"])
    if place["state"] in _FINAL:
        return False
    if outcome.attempt != place["attempt"]:
        return outcome.attempt > int(place["attempt"]) or outcome.state.final
    return outcome.state.final or State(place["state"]) is State.SENDING


def _moved(place: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    at = to_ms(outcome.at)
    return {
        "id": place["id"],
        "round": outcome.round,
        "attempt": outcome.attempt,
        "state": outcome.state.value,
        "uncertain": place["uncertain"] or outcome.uncertain,
        "updated_at": at,
        "finished_at": at if outcome.state.final else None,
    }


# Of two reports of one attempt the final one stays, and `sending` overwrites nothing.
_KEEP_FINAL = (
    "(task_id, round, attempt) DO UPDATE SET state = excluded.state, at = excluded.at, code = excluded.code,"
    " enhanced = excluded.enhanced, reply = excluded.reply, relay = excluded.relay, retry_at = excluded.retry_at,"
    " uncertain = excluded.uncertain"
    f" WHERE attempts.state NOT IN ({', '.join(repr(state) for state in _FINAL)}) AND excluded.state <> 'sending'"
)


def _says_more(outcome: Outcome) -> bool:
    """Say whether an outcome belongs in the history: an attempt, or the reason why none was made."""
    return outcome.attempt > 0 or outcome.reply is not None


def _attempt_row(outcome: Outcome) -> dict[str, Any]:
    return {
        "task_id": outcome.task_id,
        "round": outcome.round,
        "attempt": outcome.attempt,
        "state": outcome.state.value,
        "at": to_ms(outcome.at),
        "code": outcome.code,
        "enhanced": outcome.enhanced,
        "reply": outcome.reply,
        "relay": outcome.relay,
        "retry_at": to_ms(outcome.retry_at) if outcome.retry_at else None,
        "uncertain": outcome.uncertain,
    }
