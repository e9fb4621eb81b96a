"""The steps of a broadcast: every function here is one step in one transaction.

Each step first locks the row of the broadcast, if it is still in the phase that the step is for. So only one replica
makes the step, and a pause or a cancel comes before it or after it. No lease can expire during a step: the lock ends
with the transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, cast

import orjson
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import new_id
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.mail import MailDocument, MailTask
from bellhop.contracts.outcomes import State
from bellhop.contracts.tasks import Lane
from bellhop.sql.bulk import insert_many
from bellhop.sql.rows import columns_of
from bellhop.tasks.decoding import first_problem
from services.gateway.broadcasts.merge_fields import MergedMail, MergeFieldError
from services.gateway.broadcasts.store import (
    HELD,
    OPEN,
    WHOLE,
    Phase,
    WholeBroadcastRow,
    counting,
    counts_of,
    queued_in,
    whole_broadcast,
)
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.public_pages.links import Links
from services.gateway.subscribers.rows import PersonRow
from services.gateway.subscribers.store import Status
from services.gateway.suppressions.store import SuppressionStore, ended_attempt
from services.gateway.tables import attempts, broadcasts, subscribers, subscriptions, tasks
from services.gateway.tables import outbox as outbox_table
from services.gateway.tasks.messages import cancel_entry, new_task, request_entry
from services.gateway.tasks.rows import AttemptRow, TaskRow

CHUNK = 250
"""Recipients a transaction: some 10 ms, so that other writers do not wait long. Fewer if the mail is large."""
CHUNK_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class DispatchStep:
    """The result of a step."""

    count: int = 0
    entries: list[Entry] = field(default_factory=list)
    """Messages to hand over to the outbox publisher after the commit, if they were written as claimed."""


async def _locked(connection: AsyncConnection, broadcast_id: str, phase: Phase) -> WholeBroadcastRow | None:
    query = sa.select(*WHOLE).where(broadcasts.c.id == broadcast_id, broadcasts.c.state == phase)
    # SQLite needs no lock: its transaction has been the only writer since it began.
    row = (await connection.execute(query.with_for_update(skip_locked=True))).one_or_none()
    return None if row is None else whole_broadcast(row)


async def _note(connection: AsyncConnection, broadcast_id: str, **values: Any) -> None:
    await connection.execute(sa.update(broadcasts).where(broadcasts.c.id == broadcast_id).values(values))


async def begin(connection: AsyncConnection, broadcast_id: str, total: int) -> None:
    """Start a broadcast. Its recipients are the subscribers who are confirmed now."""
    if await _locked(connection, broadcast_id, Phase.SCHEDULED) is not None:
        await _note(connection, broadcast_id, state=Phase.RUNNING.value, started_at=now_ms(), total=total)


class TaskMaker:
    """Makes tasks of recipients."""

    def __init__(self, suppressions: SuppressionStore, links: Links) -> None:
        self._suppressions = suppressions
        self._links = links

    async def dispatch(
        self, connection: AsyncConnection, broadcast_id: str, room: int, *, claimed: bool
    ) -> DispatchStep:
        """Make tasks for the next recipients, at most `room`, and write their messages."""
        row = await _locked(connection, broadcast_id, Phase.RUNNING)
        if row is None or row.all_dispatched:
            return DispatchStep()
        limit = chunk_size(row.content)
        has_task = sa.exists().where(tasks.c.broadcast_id == broadcast_id, tasks.c.recipient == subscribers.c.email)
        people = await connection.execute(
            sa.select(*_PERSON, has_task.label("has_task"))
            .join(subscriptions, subscriptions.c.email == subscribers.c.email)
            .where(
                subscriptions.c.list == row.list,
                subscriptions.c.state == Status.CONFIRMED.value,
                subscriptions.c.email > row.dispatch_cursor,
                subscriptions.c.confirmed_at <= row.started_at,
            )
            .order_by(subscriptions.c.email)
            .limit(limit)
        )
        walked: list[PersonRow] = []
        found: list[PersonRow] = []
        rows = [(PersonRow(*person), has_one) for *person, has_one in people]
        for person, has_one in rows:
            if len(found) == room:
                break
            walked.append(person)
            # After an upgrade the cursor starts again: skip recipients who have a task.
            if not has_one:
                found.append(person)
        suppressed = await self._suppressions.among(connection, [person.email for person in found])
        chunk = _chunk(row, self._links)
        for person in found:
            chunk.add(person, suppressed.get(person.email))
        await insert_many(connection, tasks, chunk.tasks)
        await insert_many(connection, attempts, chunk.attempts)
        await outbox.add(connection, chunk.entries, claimed=claimed)
        dispatched, all_ = row.dispatched + len(found), len(walked) == len(rows) < limit
        await _note(
            connection,
            broadcast_id,
            dispatched=dispatched,
            dispatch_cursor=walked[-1].email if walked else row.dispatch_cursor,
            all_dispatched=all_,
            # Subscribers who unsubscribed meanwhile were counted at the start and have no task.
            total=dispatched if all_ else max(row.total, dispatched),
        )
        return DispatchStep(len(walked), chunk.entries)

    async def dispatch_failed(
        self, connection: AsyncConnection, broadcast_id: str, room: int, *, claimed: bool
    ) -> DispatchStep:
        """Begin another round of the next tasks that failed, at most `room`."""
        row = await _locked(connection, broadcast_id, Phase.RUNNING)
        if row is None or row.retry_after is None:
            return DispatchStep()
        limit = min(room, chunk_size(row.content))
        failed = sa.and_(
            tasks.c.broadcast_id == broadcast_id,
            tasks.c.state == State.FAILED.value,
            tasks.c.recipient > row.retry_after,
        )
        step = await self._retry(connection, row, sa.select(tasks).where(failed).limit(limit), claimed=claimed)
        last = None if step.count < limit else step.last
        await _note(connection, broadcast_id, retry_after=last)
        return DispatchStep(step.count, step.entries)

    async def retry_tasks(self, connection: AsyncConnection, task_ids: list[str]) -> list[Phase]:
        """Begin another round of single tasks whose broadcast is running, or finished: then it runs again.

        Returns the phases that the broadcasts were in.
        """
        return [await self._retry_task(connection, task_id) for task_id in task_ids]

    async def _retry_task(self, connection: AsyncConnection, task_id: str) -> Phase:
        mine = tasks.c.id == task_id
        owner = sa.select(tasks.c.broadcast_id).where(mine).scalar_subquery()
        query = sa.select(*WHOLE).where(broadcasts.c.id == owner).with_for_update()
        row = whole_broadcast((await connection.execute(query)).one())
        phase = row.state
        if phase in (Phase.RUNNING, Phase.FINISHED) and row.erased_at is None:
            unsent = tasks.c.state.in_((State.FAILED.value, State.SUPPRESSED.value))
            await self._retry(connection, row, sa.select(tasks).where(mine, unsent), claimed=False)
            await _note(connection, row.id, state=Phase.RUNNING.value, finished_at=None, counts=None)
        return phase

    async def _retry(
        self, connection: AsyncConnection, row: WholeBroadcastRow, query: sa.Select[Any], *, claimed: bool
    ) -> "_Retried":
        locked = query.order_by(tasks.c.recipient).with_for_update()
        found = (await connection.execute(locked)).mappings()
        old = {task["recipient"]: cast(TaskRow, dict(task)) for task in found}
        chunk = await self._retry_chunk(connection, row, old)
        if chunk.tasks:
            await connection.execute(
                _RETRY_UPDATE,
                [{f"to_{name}": value for name, value in task.items() if name in _CHANGED} for task in chunk.tasks],
            )
        await insert_many(connection, attempts, chunk.attempts)
        await outbox.add(connection, chunk.entries, claimed=claimed)
        return _Retried(len(old), next(reversed(old), ""), chunk.entries)

    async def messages(
        self, connection: AsyncConnection, row: WholeBroadcastRow, numbers: dict[str, int], old: Sequence[TaskRow]
    ) -> dict[str, Entry]:
        """Return by task id the messages of open tasks of a broadcast once more, as attempt `numbers[id]`.

        Without those of people who may not be mailed any more.
        """
        # `_Chunk` makes the next round.
        before = {task["recipient"]: task | {"round": task["round"] - 1} for task in old}
        chunk = await self._retry_chunk(connection, row, before)
        made = {str(entry.task_id): entry for entry in chunk.entries}
        return {
            id_: replace(entry, message=replace(entry.message, attempt=numbers[id_])) for id_, entry in made.items()
        }

    async def _retry_chunk(
        self, connection: AsyncConnection, row: WholeBroadcastRow, old: Mapping[str, TaskRow]
    ) -> "_Chunk":
        people = await connection.execute(
            sa.select(*_PERSON)
            .join(subscriptions, subscriptions.c.email == subscribers.c.email)
            .where(
                subscriptions.c.list == row.list,
                subscriptions.c.state == Status.CONFIRMED.value,
                subscriptions.c.email.in_(list(old)),
            )
        )
        found = {person.email: person for person in (PersonRow(*each) for each in people)}
        suppressed = await self._suppressions.among(connection, list(old))
        chunk = _chunk(row, self._links)
        for recipient, task in old.items():
            chunk.add(found.get(recipient), suppressed.get(recipient), again=task)
        return chunk


_PERSON = columns_of(subscribers, PersonRow)
_CHANGED = ("id", "state", "round", "updated_at", "finished_at")
_RETRY_UPDATE = (
    sa.update(tasks)
    .where(tasks.c.id == sa.bindparam("to_id"))
    .values({name: sa.bindparam(f"to_{name}") for name in _CHANGED if name != "id"} | {"attempt": 0})
)


@dataclass(frozen=True, slots=True)
class _Retried:
    count: int
    last: str
    entries: list[Entry]


def chunk_size(content: bytes) -> int:
    """Return how many recipients fit into one transaction."""
    return max(1, min(CHUNK, CHUNK_BYTES // len(content)))


@lru_cache(maxsize=16)
def _content(packed: bytes) -> tuple[MailDocument, MergedMail | None]:
    content = orjson.loads(packed)
    return content, None if "template" in content else MergedMail(content)


class _Chunk:
    """Collects the rows of one step."""

    def __init__(self, broadcast_id: str, owner: str, list_: str, content: bytes, links: Links) -> None:
        self._broadcast_id = broadcast_id
        self._owner = owner
        self._list = list_
        self._links = links
        self._content, self._words = _content(content)
        self._now = now_ms()
        self.tasks: list[TaskRow] = []
        self.attempts: list[AttemptRow] = []
        self.entries: list[Entry] = []

    def add(self, person: PersonRow | None, suppressed: str | None, again: TaskRow | None = None) -> None:
        """Make the task of one person, or another round of the task `again`, whose person may be deleted."""
        document: MailDocument = {
            "task_id": again["id"] if again is not None else new_id(),
            "owner": self._owner,
            "to": again["recipient"] if again is not None else person and person.email,
            "lane": Lane.BULK.value,
            "round": again["round"] + 1 if again is not None else 1,
        }
        task = new_task(MAIL, document | {"template": self._content.get("template")}, b"", created_at=self._now)
        # The document is not stored: that would be a million copies of a newsletter. It is rendered again when needed.
        task |= {"document": None, "broadcast_id": self._broadcast_id}
        self.tasks.append(task)
        if person is None:
            self._end(task, State.SUPPRESSED, "This person is no longer subscribed to the list.")
            return
        if suppressed is not None:
            self._end(task, State.SUPPRESSED, f"The address is suppressed: {suppressed}")
            return
        try:
            document |= self._mail(person)
        except MergeFieldError as error:
            self._end(task, State.FAILED, str(error))
            return
        packed = orjson.dumps(document)
        try:
            MailTask.read(packed)  # as the mailer does: a task that it rejects is dead-lettered
        except ValidationError as error:
            self._end(task, State.FAILED, f"The mail cannot be made for this person: {first_problem(error)}")
            return
        self.entries.append(request_entry(MAIL, document, packed))

    def _end(self, task: TaskRow, state: State, reason: str) -> None:
        task |= {"state": state.value, "finished_at": self._now}
        self.attempts.append(ended_attempt(task, reason))

    def envelope(self, person: PersonRow) -> MailDocument:
        """Return the content as it was given, with what the list adds for one person."""
        mail = self._content | {"list_unsubscribe": self._links.unsubscribe(person.id, self._list)}
        if person.name:
            mail["to_name"] = person.name
        own = self._content.get("headers", {})
        mail["headers"] = {"List-Id": f"<{self._list}.{self._links.host}>"} | own
        return mail

    def _mail(self, person: PersonRow) -> MailDocument:
        mail = self.envelope(person)
        subscriber = {
            "email": person.email,
            "name": person.name,
            "attributes": orjson.loads(person.attributes),
            "unsubscribe_url": mail["list_unsubscribe"],
        }
        if self._words is None:
            mail["data"] = self._content.get("data", {}) | {"subscriber": subscriber}
            return mail
        return mail | self._words.fill(subscriber)


def _chunk(row: WholeBroadcastRow, links: Links) -> _Chunk:
    return _Chunk(row.id, row.owner, row.list, row.content, links)


def check(content: MailDocument, list_: str, owner: str, links: Links) -> None:
    """Raise ValidationError where the mail of a broadcast breaks the contract of a mail task for every recipient.

    `content` is what the client sent; each mail also has the headers of the list.
    """
    chunk = _Chunk(new_id(), owner, list_, orjson.dumps(content), links)
    person = PersonRow("reader@example.com", new_id(), "", b"{}", 0, 0)
    mail = chunk.envelope(person) | {"owner": owner, "task_id": new_id(), "to": person.email}
    MailTask.read(orjson.dumps(mail))


async def hold(connection: AsyncConnection, broadcast_id: str) -> None:
    """Hold the messages of a paused broadcast that are certainly still in the outbox."""
    if await _locked(connection, broadcast_id, Phase.PAUSED) is None:
        return
    here = outbox.CERTAINLY_HERE & (outbox_table.c.due_at != HELD)
    await connection.execute(
        sa.update(outbox_table).where(here, outbox_table.c.task_id.in_(queued_in(broadcast_id))).values(due_at=HELD)
    )


async def withdraw(connection: AsyncConnection, broadcast_id: str) -> DispatchStep:
    """Cancel some open tasks of a cancelled broadcast.

    Tasks whose messages are certainly still in the outbox are cancelled. For all others the mailer is asked once, and
    its outcome shows whether the cancel was in time.
    """
    row = await _locked(connection, broadcast_id, Phase.CANCELLING)
    if row is None:
        return DispatchStep()
    current = now_ms()
    here = outbox.CERTAINLY_HERE
    ours = outbox_table.c.task_id.in_(queued_in(broadcast_id))
    taken = await connection.execute(
        sa.delete(outbox_table)
        # `here` is repeated outside: a publisher may have claimed a row since it was chosen.
        .where(outbox_table.c.id.in_(sa.select(outbox_table.c.id).where(ours, here).limit(CHUNK)), here)
        .returning(outbox_table.c.task_id)
    )
    withdrawn = list(taken.scalars())
    await connection.execute(
        sa.update(tasks)
        .where(tasks.c.id.in_(withdrawn), tasks.c.state == State.QUEUED.value)
        .values(state=State.CANCELLED.value, updated_at=current, finished_at=current)
    )
    if withdrawn:
        return DispatchStep(len(withdrawn))
    asked = (await connection.execute(_open_tasks_after(broadcast_id, row.cancel_after))).all()
    if asked:
        await outbox.add(connection, [cancel_entry(MAIL.name, task_id, round_) for task_id, round_, _ in asked])
        await _note(connection, broadcast_id, cancel_after=asked[-1].recipient)
    return DispatchStep(len(asked))


def _open_tasks_after(broadcast_id: str, after: str) -> sa.Select[Any]:
    """Return the query for the next open tasks, in the order of recipients, as the database sorts them."""
    parts = [
        sa.select(tasks.c.id, tasks.c.round, tasks.c.recipient)
        .where(tasks.c.broadcast_id == broadcast_id, tasks.c.state == state.value, tasks.c.recipient > after)
        .order_by(tasks.c.recipient)
        .limit(CHUNK)
        .subquery()
        # One query for each state: a combined one would scan all sent tasks.
        for state in OPEN
    ]
    found = sa.union_all(*(sa.select(part) for part in parts)).subquery()
    return sa.select(found).order_by(found.c.recipient).limit(CHUNK)


async def conclude(connection: AsyncConnection, broadcast_id: str, phase: Phase) -> bool:
    """End a broadcast that has no open task, and store its counts; return whether it ended."""
    row = await _locked(connection, broadcast_id, phase)
    if row is None or (phase is Phase.RUNNING and row.retry_after is not None):
        return False
    counts = counts_of((await connection.execute(counting(broadcast_id))).mappings().one())
    if any(counts.by_state[state] for state in OPEN):
        return False
    by_state = dict(counts.by_state)
    if phase is Phase.CANCELLING:
        by_state["cancelled"] += by_state.pop("waiting")
        by_state["waiting"] = 0
        final = Phase.CANCELLED
    elif row.all_dispatched:
        final = Phase.FINISHED
    else:
        return False
    await _note(connection, broadcast_id, state=final.value, finished_at=now_ms(), counts=orjson.dumps(by_state))
    return True
