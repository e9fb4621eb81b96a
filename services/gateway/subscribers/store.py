"""Subscribers, and what they subscribed to.

A subscription is `pending` until its owner confirmed by mail, then `confirmed`, until it is `unsubscribed`. Only
its owner can confirm it again after that: an import or an API key cannot. To them a pending one that has
`unsubscribed_at` still counts as unsubscribed, because a stranger may have submitted the form.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import orjson
import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.tasks import Lane
from bellhop.sql.database import Database
from bellhop.sql.rows import columns_of
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.subscribers.addresses import subscriber_id
from services.gateway.subscribers.rows import PersonRow, SubscriptionRow
from services.gateway.suppressions.store import SuppressionStore, withdrawal
from services.gateway.tables import subscribers, subscriptions, suppressions, withdrawals
from services.gateway.tasks.counts import CachedCount
from services.gateway.tasks.store import Acceptance

ASK_AGAIN_MS = 10 * 60_000
"""A person is asked again only after so long: the public form must not be a way to fill a mailbox."""


class Status(StrEnum):
    """The state of a subscription; of a person: the best of theirs, unless the address is suppressed."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    UNSUBSCRIBED = "unsubscribed"
    SUPPRESSED = "suppressed"


@dataclass(frozen=True, slots=True)
class SignUp:
    """One person to subscribe."""

    email: str
    """Canonical."""
    lists: tuple[str, ...]
    name: str | None = None
    attributes: Mapping[str, JsonValue] | None = None
    confirmed: bool = False
    """Consent was given elsewhere: no mail is needed, except by those who unsubscribed."""
    public: bool = False
    """A stranger may have written this: it changes nothing about a person who is already known."""
    returning: bool = True
    """Ask those who unsubscribed whether they want to come back."""
    lane: Lane = Lane.NORMAL


@dataclass(slots=True)
class SignedUp:
    """The result of a sign-up."""

    known: bool
    """The sign-up changes nothing."""
    skipped: bool = False
    """The person unsubscribed, and is not asked again."""
    entries: list[Entry] = field(default_factory=list)
    """The mail that asks for confirmation, to hand over after the commit."""


@dataclass(frozen=True, slots=True)
class Person:
    """One person with all subscriptions."""

    row: PersonRow
    subscriptions: Sequence[SubscriptionRow]
    state: Status


@dataclass(frozen=True, slots=True)
class _Known:
    """A subscription as it is; without a state there is none."""

    state: str | None = None
    created_at: int | None = None
    asked_at: int | None = None
    unsubscribed_at: int | None = None

    @property
    def left(self) -> bool:
        """Return whether the person unsubscribed, and has not confirmed since."""
        return self.state == Status.UNSUBSCRIBED or self.unsubscribed_at is not None

    def may_ask(self, current: int) -> bool:
        """Return whether a mail may ask for confirmation: each wait is as long as all before it, so they double.

        If the form is submitted all day, the person gets nine mails and not a hundred.
        """
        if self.state != Status.PENDING or self.asked_at is None or self.created_at is None:
            return True
        return current - self.asked_at >= max(ASK_AGAIN_MS, self.asked_at - self.created_at)


_PERSON = columns_of(subscribers, PersonRow)
_SUBSCRIPTION = columns_of(subscriptions, SubscriptionRow)

Ask = Callable[[SignUp, list[str]], Acceptance]
"""Make the mail that asks one person to confirm these lists."""


class SubscriberStore:
    """The subscribers and their subscriptions."""

    def __init__(self, database: Database, suppressed: SuppressionStore, ask: Ask) -> None:
        self._database = database
        self._suppressed = suppressed
        self._ask = ask
        self._lists = CachedCount(self._count)

    async def sign_up(self, connection: AsyncConnection, items: list[SignUp]) -> list[SignedUp]:
        """Subscribe people, and ask for confirmation where it is needed, in one commit."""
        known = await self._states(connection, sorted({item.email for item in items}))
        people: dict[str, SignUp] = {}
        changes: dict[tuple[str, str], SubscriptionRow] = {}
        results, asked = [], []
        current = now_ms()
        for item in items:
            people[item.email] = item
            result = SignedUp(known=True)
            to_ask: list[str] = []
            for list_ in item.lists:
                old = known.get((list_, item.email), _Known())
                if old.left and not item.returning:
                    result.skipped = True
                    continue
                if old.state == Status.CONFIRMED:
                    continue
                confirmed = item.confirmed and not old.left
                if not confirmed and not old.may_ask(current):
                    continue
                result.known = False
                new = known[list_, item.email] = _renewed(old, confirmed, current)
                changes[list_, item.email] = _row(list_, item.email, new, current)
                if not confirmed:
                    to_ask.append(list_)
            if to_ask:
                asked.append((result, self._ask(item, to_ask)))
            results.append(result)
        await self._keep_people(connection, list(people.values()), current)
        await self._keep_subscriptions(connection, list(changes.values()))
        accepted = await self._suppressed.accept(connection, [acceptance for _, acceptance in asked])
        for (result, acceptance), each in zip(asked, accepted, strict=True):
            if each.goes_out and acceptance.claimed:
                result.entries = acceptance.entries
        return results

    async def _states(self, connection: AsyncConnection, emails: list[str]) -> dict[tuple[str, str], _Known]:
        columns = [subscriptions.c[name] for name in ("list", "email", *_Known.__dataclass_fields__)]
        found = await connection.execute(sa.select(*columns).where(subscriptions.c.email.in_(emails)))
        return {(list_, email): _Known(*values) for list_, email, *values in found}

    async def _keep_people(self, connection: AsyncConnection, items: list[SignUp], current: int) -> None:
        insert = self._database.insert(subscribers)
        by_change: dict[tuple[str, ...], list[PersonRow]] = {}
        # In one order, so that two replicas that import the same people do not deadlock.
        for item in sorted(items, key=lambda each: each.email):
            given = [] if item.public else [
                name for name, value in (("name", item.name), ("attributes", item.attributes)) if value is not None
            ]  # fmt: skip
            by_change.setdefault(tuple(given), []).append(
                PersonRow(
                    email=item.email,
                    id=subscriber_id(item.email),
                    name=item.name or "",
                    attributes=orjson.dumps(item.attributes or {}),
                    created_at=current,
                    updated_at=current,
                )
            )
        for changed, rows in by_change.items():
            # Without a change it still locks the row, so that the person is not deleted during the sign-up.
            columns = (*changed, "updated_at") if changed else ("email",)
            values = {column: insert.excluded[column] for column in columns}
            keep = insert.on_conflict_do_update(index_elements=["email"], set_=values)
            await connection.execute(keep, [asdict(row) for row in rows])

    async def _keep_subscriptions(self, connection: AsyncConnection, rows: list[SubscriptionRow]) -> None:
        if not rows:
            return
        insert = self._database.insert(subscriptions)
        names = ("state", "created_at", "asked_at", "confirmed_at", "unsubscribed_at")
        values = {name: insert.excluded[name] for name in names}
        # The person may have confirmed since the read; that stays.
        changed = insert.on_conflict_do_update(
            index_elements=["list", "email"], set_=values, where=subscriptions.c.state != Status.CONFIRMED.value
        )
        rows.sort(key=lambda row: (row.list, row.email))
        await connection.execute(changed, [asdict(row) for row in rows])

    async def confirm(self, person: str, lists: tuple[str, ...]) -> bool:
        """Confirm pending subscriptions; return whether the person is on one of these lists now."""
        async with self._database.write() as connection:
            email = await self._email(connection, person)
            mine = (subscriptions.c.email == email) & subscriptions.c.list.in_(lists)
            await connection.execute(
                sa.update(subscriptions)
                .where(mine, subscriptions.c.state == Status.PENDING)
                .values(state=Status.CONFIRMED.value, confirmed_at=now_ms(), unsubscribed_at=None)
            )
            states = await connection.execute(sa.select(subscriptions.c.state).where(mine))
            return Status.CONFIRMED in states.scalars().all()

    async def unsubscribe(self, person: str, lists: tuple[str, ...]) -> None:
        """End subscriptions; without a subscription nothing changes."""
        async with self._database.write() as connection:
            email = await self._email(connection, person)
            await connection.execute(
                sa.update(subscriptions)
                .where(
                    subscriptions.c.email == email,
                    subscriptions.c.list.in_(lists),
                    subscriptions.c.state != Status.UNSUBSCRIBED,
                )
                .values(state=Status.UNSUBSCRIBED.value, unsubscribed_at=now_ms())
            )
            if email is not None:
                await connection.execute(sa.insert(withdrawals), [withdrawal(email, list_) for list_ in lists])

    async def _email(self, connection: AsyncConnection, person: str) -> str | None:
        query = sa.select(subscribers.c.email).where(subscribers.c.id == person)
        return (await connection.execute(query)).scalar_one_or_none()

    async def delete(self, email: str) -> bool:
        """Delete a person; return whether there was one."""
        async with self._database.write() as connection:
            # The person first: that waits for a concurrent sign-up, whose subscriptions are visible after it.
            gone = await connection.execute(sa.delete(subscribers).where(subscribers.c.email == email))
            left = sa.delete(subscriptions).where(subscriptions.c.email == email).returning(subscriptions.c.list)
            lists = list((await connection.execute(left)).scalars())
            if lists:
                await connection.execute(sa.insert(withdrawals), [withdrawal(email, list_) for list_ in lists])
            return bool(gone.rowcount)

    async def get(self, email: str) -> Person | None:
        """Return a person with all subscriptions."""
        found = await self._people(sa.select(*_PERSON).where(subscribers.c.email == email))
        return found[0] if found else None

    async def page(self, *, list_: str | None, state: Status | None, after: str | None, limit: int) -> list[Person]:
        """Return people in the order of addresses; `after` is the last one of the page before.

        `state` is that of a subscription to `list_`, or to any list; or `suppressed`.
        """
        email, matching = _matching(list_, state)
        if after is not None:
            matching = matching.where(email > after)
        page = matching.order_by(email).limit(limit).scalar_subquery()
        query = sa.select(*_PERSON).where(subscribers.c.email.in_(page)).order_by(subscribers.c.email)
        return await self._people(query)

    async def _people(self, query: sa.Select[Any]) -> list[Person]:
        async with self._database.read() as connection:
            rows = [PersonRow(*row) for row in await connection.execute(query)]
            theirs: dict[str, list[SubscriptionRow]] = {row.email: [] for row in rows}
            emails = list(theirs)
            joined = sa.select(*_SUBSCRIPTION).where(subscriptions.c.email.in_(emails)).order_by(subscriptions.c.list)
            for found in await connection.execute(joined):
                each = SubscriptionRow(*found)
                theirs[each.email].append(each)
            suppressed = await self._suppressed.among(connection, emails)
        return [
            Person(row, theirs[row.email], _state_of(theirs[row.email], suppressed=row.email in suppressed))
            for row in rows
        ]

    async def lists(self) -> dict[str, dict[str, int]]:
        """Return the names of all lists with their numbers of subscriptions by state, as of the last count."""
        return await self._lists.get()

    async def _count(self) -> dict[str, dict[str, int]]:
        names = (subscriptions.c.list, subscriptions.c.state)
        query = sa.select(*names, sa.func.count()).group_by(*names).order_by(*names)
        counts: dict[str, dict[str, int]] = {}
        async with self._database.read() as connection:
            for name, state, count in await connection.execute(query):
                counts.setdefault(name, {})[state] = count
        return counts


def _matching(list_: str | None, state: Status | None) -> tuple[sa.Column[str], sa.Select[Any]]:
    """Return the column of addresses, and the query for those that match; an index has them in their order."""
    if state is Status.SUPPRESSED:
        ends = suppressions.c.expires_at
        known = sa.select(subscribers.c.email).where(subscribers.c.email == suppressions.c.address)
        if list_ is not None:
            theirs = subscriptions.c.email == suppressions.c.address
            known = sa.select(subscriptions.c.email).where(theirs, subscriptions.c.list == list_)
        now = ends.is_(None) | (ends > now_ms())
        return suppressions.c.address, sa.select(suppressions.c.address).where(now, known.exists())
    if list_ is None and state is None:
        return subscribers.c.email, sa.select(subscribers.c.email)
    wanted = sa.select(subscriptions.c.email)
    if state is not None:
        wanted = wanted.where(subscriptions.c.state == state)
    # A person on several lists is in the index as many times.
    wanted = wanted.distinct() if list_ is None else wanted.where(subscriptions.c.list == list_)
    return subscriptions.c.email, wanted


def _renewed(old: _Known, confirmed: bool, current: int) -> _Known:
    """Return what a sign-up makes of a subscription."""
    # After an unsubscription the waits start again; the time since then does not count.
    created_at = current if old.created_at is None or old.state == Status.UNSUBSCRIBED else old.created_at
    if confirmed:
        return _Known(Status.CONFIRMED.value, created_at)
    return _Known(Status.PENDING.value, created_at, current, old.unsubscribed_at)


def _row(list_: str, email: str, new: _Known, current: int) -> SubscriptionRow:
    assert new.state is not None
    assert new.created_at is not None
    return SubscriptionRow(
        list=list_,
        email=email,
        state=new.state,
        created_at=new.created_at,
        asked_at=new.asked_at,
        confirmed_at=current if new.state == Status.CONFIRMED else None,
        unsubscribed_at=new.unsubscribed_at,
    )


def _state_of(theirs: Sequence[SubscriptionRow], *, suppressed: bool) -> Status:
    """Return the state of a person: the best of their subscriptions."""
    if suppressed:
        return Status.SUPPRESSED
    states = {each.state for each in theirs}
    return next((state for state in (Status.CONFIRMED, Status.PENDING) if state in states), Status.UNSUBSCRIBED)
