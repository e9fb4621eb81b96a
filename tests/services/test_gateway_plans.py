"""Every list is read from an index, page by page: what it costs depends on the page and not on the table."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa

from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.broadcasts.store import Broadcasts
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.subscribers.store import Status, SubscriberStore
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.tasks.store import Ledger

ROWS = 4000
SQLITE_STEPS = 3 * ROWS
"""To read so many rows takes more instructions than this, to read a page takes far fewer."""
FILL = {
    "tasks": "(id, kind, owner, state, round, attempt, lane, recipient, event_id, broadcast_id, document, uncertain,"
    " created_at, updated_at, finished_at)"
    " SELECT {text}, 'mail', CASE WHEN n % 1000 = 7 THEN 'small' ELSE 'shop' END,"
    " CASE WHEN n % 1000 = 3 THEN 'failed' ELSE 'sent' END, 1, 1, 'normal', {text}, {text}, {text},"
    " NULL, false, n, n, n FROM {numbers}",
    "broadcasts": "(id, owner, list, state, content, total, fed, fed_after, fed_all, cancel_after, created_at,"
    " finished_at)"
    " SELECT {text}, CASE WHEN n % 1000 = 7 THEN 'small' ELSE 'shop' END, 'news', 'finished', {blob}, 0, 0, '', true,"
    " '', n, n FROM {numbers}",
    "dead_letters": "(id, identity, queue, event_id, type, reason, error, attempts, envelope, body, died_at,"
    " replayed_at)"
    " SELECT {text}, {text}, CASE WHEN n % 1000 = 7 THEN 'mail.bulk' ELSE 'mail.normal' END, {text}, 't', 'rejected',"
    " 'e', 1, {blob}, {blob}, n, CASE WHEN n % 1000 < 9 THEN NULL ELSE n END FROM {numbers}",
    "subscribers": "(email, id, name, attributes, created_at, updated_at)"
    " SELECT {text}, {text}, '', {blob}, n, n FROM {numbers}",
    "subscriptions": "(list, email, state, created_at)"
    " SELECT CASE WHEN n % 1000 = 7 THEN 'small' ELSE 'news' END, {text},"
    " CASE WHEN n % 1000 = 3 THEN 'pending' ELSE 'confirmed' END, n FROM {numbers}",
    "suppressions": "(address, reason, source, created_at)"
    " SELECT {text}, 'r', CASE WHEN n % 1000 = 7 THEN 'shop' ELSE 'bounce' END, n FROM {numbers}",
}
DIALECTS = {
    "sqlite": {
        "numbers": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s"
        f" WHERE n < {ROWS}) SELECT n FROM s)",
        "text": "printf('%08d-0000-7000-8000-000000000000', n)",
        "blob": "x'7b7d'",
    },
    "postgresql": {
        "numbers": f"generate_series(1, {ROWS}) AS s(n)",
        "text": "lpad(n::text, 8, '0') || '-0000-7000-8000-000000000000'",
        "blob": "'{}'::bytea",
    },
}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Some thousand rows in every table with a list, and what the planner wants to know about them."""
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    async with database.write() as connection:
        for table, rows in FILL.items():
            statement = f"INSERT INTO {table} {rows}".format(**DIALECTS[database.dialect])
            await connection.exec_driver_sql(statement)
    async with database.write() as connection:
        await connection.exec_driver_sql("ANALYZE")
    yield database
    await database.close()


class Plans:
    """Explains every SELECT that runs on a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seen: list[tuple[str, Any]] = []
        engine = database.engine.sync_engine
        sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT") and "EXPLAIN" not in statement:
            self._seen.append((statement, parameters))

    async def scans(self) -> list[str]:
        """Return what was read in full by the statements since the last call, and each statement that sorts a table."""
        seen, self._seen = self._seen, []
        found = []
        for statement, parameters in seen:
            found += await self._scans(statement, parameters)
        self._seen.clear()
        return found

    async def _scans(self, statement: str, parameters: Any) -> list[str]:
        if self._database.dialect == "sqlite":
            steps = _steps(str(self._database.engine.url.database), statement, parameters)
            return [f"{steps} steps of {statement}"] if steps > SQLITE_STEPS else []
        async with self._database.engine.connect() as connection:
            # Of tables of this size the planner would rather read all; in large ones that is never cheaper.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
            return list(_large(plan.scalar_one()[0]["Plan"]))


def _steps(path: str, statement: str, parameters: Any) -> int:
    """Return how many instructions SQLite's virtual machine needs for a statement, to a hundred."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 100
        return 0

    with closing(sqlite3.connect(path)) as connection:
        connection.set_progress_handler(count, 100)
        connection.execute(statement, parameters).fetchall()
    return steps


def _large(node: dict[str, Any]) -> Any:
    """Yield the steps of a plan of PostgreSQL that touched far more rows than a page has."""
    rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * max(1, node["Actual Loops"])
    if rows > ROWS / 4:
        yield f"{node['Node Type']} of {rows} rows in {node.get('Relation Name')}"
    for child in node.get("Plans", []):
        yield from _large(child)


BEFORE = (ROWS - 500, f"{ROWS - 500:08d}-0000-7000-8000-000000000000")


async def test_a_page_of_tasks_reads_a_page(database: Database) -> None:
    """Whoever asks, whatever the filters, and however rare the tasks that match."""
    plans = Plans(database)
    ledger = Ledger(database)
    states = (None, State.SENT, State.FAILED, State.QUEUED)
    for owner, state, before in product((None, "shop", "small"), states, (None, BEFORE)):
        page = await ledger.page(owner=owner, state=state, before=before, limit=20)
        assert await plans.scans() == [], (owner, state, before)

        assert all(owner in (None, task["owner"]) and state in (None, task["state"]) for task in page)
        places = [(task["created_at"], task["id"]) for task in page]
        assert places == sorted(places, reverse=True)
        if owner != "small" and state in (None, State.SENT):
            newest = ROWS if before is None else BEFORE[0] - 1
            assert len(page) == 20
            assert newest - page[0]["created_at"] <= 1


async def test_the_tasks_of_an_event_are_found_by_it(database: Database) -> None:
    """The list of what an event set off reads these tasks alone."""
    plans = Plans(database)

    page = await Ledger(database).page(owner=None, event_id=BEFORE[1], limit=200)

    assert [task["created_at"] for task in page] == [BEFORE[0]]
    assert await plans.scans() == []


async def test_a_page_of_broadcasts_reads_a_page(database: Database) -> None:
    """Of all, and of a key that has few; and the tasks of one."""
    plans = Plans(database)
    store = Broadcasts(database)

    assert len(await store.page(owner=None, before=None, limit=20)) == 20
    assert len(await store.page(owner="small", before=None, limit=20)) == ROWS // 1000
    assert await store.active() == []
    assert len(await store.tasks(BEFORE[1], state=None, after=None, limit=20)) == 1
    assert len(await store.tasks(BEFORE[1], state=State.SENT, after=None, limit=20)) == 1
    assert await plans.scans() == []


async def test_a_page_of_dead_letters_reads_a_page(database: Database) -> None:
    """Also where few wait among many that were replayed."""
    plans = Plans(database)
    store = DeadLetters(database)

    assert len(await store.page(queue=None, before=None, waiting=True, limit=20)) == 20
    assert len(await store.page(queue="mail.bulk", before=None, waiting=True, limit=20)) == ROWS // 1000
    assert len(await store.page(queue="mail.bulk", before=None, waiting=False, limit=20)) == ROWS // 1000
    assert len(await store.page(queue=None, before=BEFORE[1], waiting=False, limit=20)) == 20
    assert await plans.scans() == []


async def test_a_page_of_subscribers_reads_a_page(database: Database) -> None:
    """Of all, of a list, in a state, and both."""
    plans = Plans(database)
    audience = SubscriberStore(database, SuppressionStore(database, 90), None)  # type: ignore[arg-type]
    for list_, state in product((None, "news", "small"), (None, *Status)):
        page = await audience.page(list_=list_, state=state, after=None, limit=20)
        scans = await plans.scans()
        # Who of a few is among many that are suppressed is found by looking at all these.
        assert scans == [] or (list_, state) == ("small", Status.SUPPRESSED), (list_, state)

        emails = [person.row.email for person in page]
        assert emails == sorted(emails)
        assert all(list_ is None or list_ in {each.list for each in person.subscriptions} for person in page)
        if state in (None, Status.SUPPRESSED):
            assert len(page) == (ROWS // 1000 if list_ == "small" else 20)


async def test_a_page_of_suppressions_reads_a_page(database: Database) -> None:
    """Of all, and of a source that has few."""
    plans = Plans(database)
    store = SuppressionStore(database, 90)

    assert len(await store.page(after=None, source=None, limit=20)) == 20
    assert len(await store.page(after=None, source="shop", limit=20)) == ROWS // 1000
    assert await plans.scans() == []
