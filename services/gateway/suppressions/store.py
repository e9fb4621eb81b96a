"""Addresses that get no mail, each with the reason and, where there is one, the end of it."""

from dataclasses import dataclass, replace
from time import monotonic
from typing import TypedDict

import orjson
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.addresses import canonical
from bellhop.contracts.identity import BOUNCE
from bellhop.contracts.outcomes import Outcome, State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from bellhop.sql.rows import columns_of
from services.gateway.outbox import store as outbox
from services.gateway.outbox.store import now_ms
from services.gateway.tables import attempts, suppressions, tasks, withdrawals
from services.gateway.tasks import store as ledger
from services.gateway.tasks.ended import live_entries
from services.gateway.tasks.rows import AttemptRow, TaskRow
from services.gateway.tasks.rows import ended as task_ended
from services.gateway.tasks.store import Acceptance, Accepted

SETTLED_SECONDS = 30.0
"""A row that was written so long ago is committed, or never will be."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """One address; times in milliseconds since 1970."""

    address: str
    reason: str
    source: str
    """`bounce`, or the name of the API key that asked for it."""
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class SuppressionRow:
    """A suppressed address as the database holds it."""

    address: str
    reason: str
    source: str
    created_at: int
    expires_at: int | None


# No such mailbox, domain or system; bad syntax; moved without a forward; a null MX; a disabled mailbox (RFC 3463,
# RFC 7505, registry of RFC 5248). The rest of 5.1.x is about senders or unclear.
_NO_SUCH_ADDRESS = frozenset({"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"})


def is_hard_bounce(outcome: Outcome) -> bool:
    """Return whether an outcome means that there is no such mailbox.

    The mailer knows which command was refused, and says `bad-address` only of a recipient that the relay had heard of.
    Any other refusal is about this mail, its sender or the relay: to suppress for it would suppress whole lists because
    of one wrong setting. A temporary refusal (4.1.x, until the last attempt) is not a hard bounce.
    """
    if outcome.state is not State.FAILED or outcome.cause not in (None, "bad-address"):
        return False
    if outcome.enhanced is None:
        # A relay that is no SMTP server names the field. (A mailer before 0.2 said it of any 551 and 553, too.)
        return outcome.cause is not None and outcome.code not in (551, 553)
    return outcome.enhanced in _NO_SUCH_ADDRESS


class SuppressionStore:
    """The suppression list.

    A look-up rarely finds an address, and the list is often empty. So `empty` is kept in memory: this process sets
    it when it adds something itself, and `refresh` sees what other replicas added.
    """

    def __init__(self, database: Database, bounce_days: float) -> None:
        self._database = database
        self._bounce_ms = round(bounce_days * 86_400_000)
        self._empty = False
        self._added_at = float("-inf")

    async def refresh(self) -> None:
        """Read whether the list is empty."""
        began = monotonic()
        async with self._database.read() as connection:
            found = (await connection.execute(sa.select(suppressions.c.address).limit(1))).first()
        # A row that was added a moment ago may have been committed after the read.
        self._empty = found is None and began - self._added_at > SETTLED_SECONDS

    async def among(self, connection: AsyncConnection, addresses: list[str]) -> dict[str, str]:
        """Return which of these canonical addresses get no mail now, and why."""
        if self._empty or not addresses:
            return {}
        return await _reasons(connection, addresses)

    async def reasons(self, addresses: list[str]) -> dict[str, str]:
        """Return which of these canonical addresses get no mail now, and why; asks the database each time."""
        async with self._database.read() as connection:
            return await _reasons(connection, addresses)

    async def accept(self, connection: AsyncConnection, items: list[Acceptance]) -> list[Accepted]:
        """Do what `ledger.accept` does; a task for a suppressed address ends immediately, and nothing is sent.

        One look-up serves all that arrived together.
        """
        if self._empty:
            return await ledger.accept(connection, items)
        wanted = [task["address"] for item in items for task in item.tasks if task["address"] is not None]
        found = await self.among(connection, wanted)
        if not found:
            return await ledger.accept(connection, items)
        items = [_ended(item, found) for item in items]
        accepted = await ledger.accept(connection, items)
        rows = []
        entries = []
        for position, (item, each) in enumerate(zip(items, accepted, strict=True)):
            ended = [task for task in item.tasks if task["state"] == State.SUPPRESSED]
            if ended and each.new:
                accepted[position] = replace(each, goes_out=False)
                for task in ended:
                    reason = f"The address is suppressed: {found[task['address'] or '']}"
                    rows.append(ended_attempt(task, reason))
                    entries += live_entries([task], reason)
        await insert_many(connection, attempts, rows)
        await outbox.add(connection, entries)
        return accepted

    async def note_bounces(self, connection: AsyncConnection, outcomes: list[Outcome]) -> None:
        """Suppress the addresses of hard bounces, for a time: mailboxes do come back, and addresses are reused."""
        bounced = {outcome.task_id: outcome for outcome in outcomes if is_hard_bounce(outcome)}
        if not bounced:
            return
        found = await connection.execute(sa.select(tasks.c.id, tasks.c.recipient).where(tasks.c.id.in_(list(bounced))))
        expires_at = now_ms() + self._bounce_ms
        for task_id, recipient in sorted(found, key=lambda row: row[1]):  # in one order, or two replicas could deadlock
            outcome = bounced[task_id]
            reason = " ".join(filter(None, (str(outcome.code or ""), outcome.reply)))[:1000]
            await self._put(connection, Suppression(canonical(recipient), reason, BOUNCE, expires_at), keep=True)

    async def add(self, suppression: Suppression) -> None:
        """Suppress an address, in place of its earlier suppression."""
        async with self._database.write() as connection:
            await self._put(connection, suppression, keep=False)

    async def _put(self, connection: AsyncConnection, suppression: Suppression, *, keep: bool) -> None:
        insert = self._database.insert(suppressions).values(
            address=suppression.address,
            reason=suppression.reason,
            source=suppression.source,
            created_at=now_ms(),
            expires_at=suppression.expires_at,
        )
        values = {name: insert.excluded[name] for name in ("reason", "source", "created_at", "expires_at")}
        # `keep`: a suppression without an end is not replaced by one that ends.
        where = suppressions.c.expires_at.is_not(None) if keep else None
        await connection.execute(insert.on_conflict_do_update(index_elements=["address"], set_=values, where=where))
        await connection.execute(sa.insert(withdrawals), [withdrawal(suppression.address)])
        self._empty = False
        self._added_at = monotonic()

    async def remove(self, address: str) -> bool:
        """Remove a suppression; return whether there was one."""
        async with self._database.write() as connection:
            gone = await connection.execute(sa.delete(suppressions).where(suppressions.c.address == address))
            return bool(gone.rowcount)

    async def get(self, address: str) -> SuppressionRow | None:
        """Return what is known about one address; None where mail may go to it."""
        query = sa.select(*_LISTED).where(suppressions.c.address == address, active())
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else SuppressionRow(*row)

    async def page(self, *, after: str | None, source: str | None, limit: int) -> list[SuppressionRow]:
        """Return what is suppressed now, in the order of addresses."""
        query = sa.select(*_LISTED).where(active()).order_by(suppressions.c.address).limit(limit)
        if after is not None:
            query = query.where(suppressions.c.address > after)
        if source is not None:
            query = query.where(suppressions.c.source == source)
        async with self._database.read() as connection:
            return [SuppressionRow(*row) for row in await connection.execute(query)]


_LISTED = columns_of(suppressions, SuppressionRow)


class WithdrawalRow(TypedDict):
    """What ends the mail that waits for an address."""

    address: str
    list: str | None
    due_at: int
    looks: int


def active() -> sa.ColumnElement[bool]:
    """Return the condition for rows of the suppression list that have not expired."""
    return suppressions.c.expires_at.is_(None) | (suppressions.c.expires_at > now_ms())


def withdrawal(address: str, list_: str | None = None) -> WithdrawalRow:
    """Return the row that ends what waits for an address: mail of one list, or all mail (`withdrawals.py`)."""
    return {"address": address, "list": list_, "due_at": now_ms(), "looks": 0}


def ended_attempt(task: TaskRow, reason: str) -> AttemptRow:
    """Return the row that says why a task ended before any attempt was made."""
    return {
        "task_id": task["id"],
        "round": task["round"],
        "attempt": 0,
        "state": task["state"],
        "at": task["created_at"],
        "code": None,
        "enhanced": None,
        "reply": reason,
        "relay": None,
        "retry_at": None,
        "uncertain": False,
    }


def _ended(item: Acceptance, found: dict[str, str]) -> Acceptance:
    ended = {task["id"] for task in item.tasks if task["address"] in found}
    if not ended:
        return item
    at = now_ms()
    answer = orjson.loads(item.answer) | {"state": State.SUPPRESSED.value}
    return replace(
        item,
        answer=orjson.dumps(answer),
        tasks=[task_ended(task, State.SUPPRESSED, at) if task["id"] in ended else task for task in item.tasks],
        entries=[entry for entry in item.entries if entry.task_id not in ended],
    )


async def _reasons(connection: AsyncConnection, addresses: list[str]) -> dict[str, str]:
    columns = (suppressions.c.address, suppressions.c.reason)
    found = await connection.execute(sa.select(*columns).where(suppressions.c.address.in_(addresses), active()))
    return dict(found.all())
