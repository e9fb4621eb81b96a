"""What two million tasks and ten million inbox rows cost: `python -m bench growth`.

Each operation is measured on a database that is empty and on one that is full, SQLite and PostgreSQL, in process and
without HTTP: pages of every list for the administrator, for a key that owns nearly all tasks and for one that owns 100;
what /readyz and /v1/system ask; 17 mails accepted in one commit; one mail claimed by the mailer. The ratio says what
growth costs. The full databases are filled by the databases themselves, in some minutes.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count

import asyncpg
import orjson

from bellhop.contracts.base import new_id
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.tasks.inbox import Inbox
from services.gateway.broadcasts.store import Broadcasts
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.outbox.store import now_ms
from services.gateway.subscribers.store import Status, SubscriberStore
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.tasks import store as ledger
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.store import Acceptance, Ledger
from services.mailer.tables import INBOX as MAILER_INBOX
from tests.support.postgresql import private_server

Operation = Callable[[], Awaitable[object]]

BATCH = 17
"""Mails in one commit, as under load."""

# What a full gateway holds, as parts of the number of tasks. Rare owners and states are spread evenly.
GATEWAY = {
    "tasks": (
        1.0,
        "(id, kind, owner, state, round, attempt, lane, recipient, document, uncertain, created_at, updated_at,"
        " finished_at)"
        " SELECT {id}, 'mail', CASE WHEN n % 20000 = 7 THEN 'small' ELSE 'shop' END,"
        " CASE WHEN n % 50000 = 3 THEN 'failed' WHEN n % 10000 = 11 THEN 'retrying' ELSE 'sent' END,"
        " 1, 1, 'normal', {id}, {blob}, false, n, n, CASE WHEN n % 10000 = 11 THEN NULL ELSE n END FROM {rows}",
    ),
    "broadcasts": (
        0.01,
        "(id, owner, list, state, content, total, fed, fed_after, fed_all, cancel_after, created_at, finished_at)"
        " SELECT {id}, CASE WHEN n % 5000 = 7 THEN 'small' ELSE 'shop' END, 'news', 'finished', {blob}, 0, 0, '', true,"
        " '', n, n FROM {rows}",
    ),
    "dead_letters": (
        0.05,
        "(id, identity, queue, event_id, type, reason, error, attempts, envelope, body, died_at, replayed_at)"
        " SELECT {id}, {id}, 'mail.normal', {id}, 'mail.requested', 'rejected', 'e', 1, {blob}, {blob}, n,"
        " CASE WHEN n % 1000 = 7 THEN NULL ELSE n END FROM {rows}",
    ),
    "subscribers": (
        0.5,
        "(email, id, name, attributes, created_at, updated_at) SELECT {id}, {id}, '', {blob}, n, n FROM {rows}",
    ),
    "subscriptions": (
        0.5,
        "(list, email, state, created_at) SELECT CASE WHEN n % 20000 = 7 THEN 'small' ELSE 'news' END, {id},"
        " CASE WHEN n % 10000 = 3 THEN 'pending' ELSE 'confirmed' END, n FROM {rows}",
    ),
    "suppressions": (
        0.05,
        "(address, reason, source, created_at) SELECT {id}, 'r',"
        " CASE WHEN n % 20000 = 7 THEN 'shop' ELSE 'bounce' END, n FROM {rows}",
    ),
}
INBOX = "(task_id, round, state, attempt, uncertain, created_at) SELECT {id}, 1, 'done', 1, false, n FROM {rows}"
DIALECTS = {
    "sqlite": {
        "rows": "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {count}) SELECT n FROM s)",
        "id": "printf('%08x-%04x-7000-8000-%012x', n / 65536, n % 65536, n)",
        "blob": "zeroblob(300)",
    },
    "postgresql": {
        "rows": "generate_series(1, {count}) AS s(n)",
        "id": "lpad(to_hex(n / 65536), 8, '0') || '-' || lpad(to_hex(n % 65536), 4, '0') || '-7000-8000-'"
        " || lpad(to_hex(n), 12, '0')",
        "blob": "decode(repeat('ab', 300), 'hex')",
    },
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2_000_000)
    parser.add_argument("--inbox", type=int, default=10_000_000)
    parser.add_argument("--times", type=int, default=200, help="how often each operation is measured")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bellhop-bench-") as folder:
        asyncio.run(_measure("SQLite", lambda name: f"sqlite+aiosqlite:///{folder}/{name}.db", arguments))
    with private_server() as server:
        asyncio.run(_with_postgresql(str(server["url"]), arguments))


async def _with_postgresql(server: str, arguments: argparse.Namespace) -> None:
    administrator = await asyncpg.connect(server.replace("+asyncpg", "") + "/postgres")
    for name in ("empty", "grown", "empty_mailer", "grown_mailer"):
        await administrator.execute(f"CREATE DATABASE {name}")
    await administrator.close()
    await _measure("PostgreSQL", lambda name: f"{server}/{name}", arguments)


async def _measure(title: str, url: Callable[[str], str], arguments: argparse.Namespace) -> None:
    began = time.monotonic()
    opened: list[Database] = []
    operations: dict[str, dict[str, Operation]] = {}
    for size in ("empty", "grown"):
        gateway = await _open(url(size), "services.gateway")
        mailer = await _open(url(f"{size}_mailer"), "services.mailer")
        opened += [gateway, mailer]
        if size == "grown":
            for table, (part, statement) in GATEWAY.items():
                await _fill(gateway, table, statement, round(arguments.tasks * part))
            await _fill(mailer, "mailer_inbox", INBOX, arguments.inbox)
            print(f"{title}: filled in {time.monotonic() - began:.0f} s", flush=True)
        for name, operation in (await _operations(gateway, mailer)).items():
            operations.setdefault(name, {})[size] = operation
    # One after the other for each operation, so that whatever else the machine does meets both.
    found = {
        name: {size: await _times(operation, arguments.times) for size, operation in sizes.items()}
        for name, sizes in operations.items()
    }
    for database in opened:
        await database.close()
    print(f"\n{title}, {arguments.tasks:,} tasks, {arguments.inbox:,} inbox rows; milliseconds")
    print(f"{'':44}{'empty p50':>10}{'p99':>8}{'full p50':>10}{'p99':>8}{'ratio p50':>11}")
    for name, sizes in found.items():
        (empty, empty_99), (full, full_99) = sizes["empty"], sizes["grown"]
        print(f"{name:44}{empty:10.2f}{empty_99:8.2f}{full:10.2f}{full_99:8.2f}{full / empty:11.1f}", flush=True)


async def _open(url: str, package: str) -> Database:
    await migrate(url, package)
    return Database(url)


async def _fill(database: Database, table: str, statement: str, count: int) -> None:
    words = DIALECTS[database.dialect]
    filled = statement.format(**words | {"rows": words["rows"].format(count=count)})
    async with database.write(3600) as connection:
        await connection.exec_driver_sql(f"INSERT INTO {table} {filled}")
    async with database.write(3600) as connection:
        await connection.exec_driver_sql(f"ANALYZE {table}")
    if database.dialect == "sqlite":
        # Else the first commits after it would copy all that was filled in to the file.
        async with database.engine.connect() as connection:
            raw = await connection.get_raw_connection()
            await raw.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _operations(gateway: Database, mailer: Database) -> dict[str, Operation]:
    tasks, letters, broadcasts = Ledger(gateway), DeadLetters(gateway), Broadcasts(gateway)
    suppressions = SuppressionStore(gateway, 90)
    audience = SubscriberStore(gateway, suppressions, _nothing_to_ask)
    inbox = Inbox(mailer, MAILER_INBOX, "bench")
    await inbox.beat()
    numbers = count()

    def page(owner: str | None, state: State | None) -> Operation:
        return lambda: tasks.page(owner=owner, state=state, limit=50)

    async def accept() -> None:
        items = [_mail() for _ in range(BATCH)]
        async with gateway.write() as connection:
            await ledger.accept(connection, items)

    async def list_letters() -> None:
        await letters.page(queue=None, before=None, waiting=True, limit=50)
        await letters.groups(None)

    async def system() -> None:
        await asyncio.gather(tasks.counts(), tasks.oldest_waiting(), letters.waiting())

    owners = {"administrator": None, "a key with nearly all tasks": "shop", "a key with 100 tasks": "small"}
    states = (None, State.SENT, State.FAILED, State.QUEUED)
    return {
        f"tasks{'' if state is None else f' {state.value}'}, {who}": page(owner, state)
        for who, owner in owners.items()
        for state in states
    } | {
        "broadcasts, administrator": lambda: broadcasts.page(owner=None, before=None, limit=20),
        "broadcasts, a key with few": lambda: broadcasts.page(owner="small", before=None, limit=20),
        "dead letters that wait, and their groups": list_letters,
        "subscribers": lambda: audience.page(list_=None, state=None, after=None, limit=50),
        "subscribers of a small list": lambda: audience.page(list_="small", state=None, after=None, limit=50),
        "pending subscribers": lambda: audience.page(list_=None, state=Status.PENDING, after=None, limit=50),
        "suppressions of one source": lambda: suppressions.page(after=None, source="shop", limit=50),
        "lists with their numbers": audience.lists,
        "/readyz": tasks.check,
        "/v1/system, without the broker": system,
        f"accept {BATCH} mails in one commit": accept,
        "claim one mail (mailer)": lambda: inbox.claim((f"task-{next(numbers)}", 1), 1),
    }


def _nothing_to_ask(*_: object) -> Acceptance:
    raise NotImplementedError


def _mail() -> Acceptance:
    document = {
        "task_id": new_id(),
        "owner": "shop",
        "to": "ada@example.com",
        "subject": "Hello",
        "text": "x" * 300,
        "lane": "normal",
    }
    packed = orjson.dumps(document)
    task = new_task(MAIL, document, packed, created_at=now_ms())
    return Acceptance(answer=b"{}", tasks=[task], entries=[request_entry(MAIL, document, packed)])


async def _times(operation: Operation, times: int) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds; the first calls, which prepare statements, do not count."""
    for _ in range(10):
        await operation()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await operation()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken), statistics.quantiles(taken, n=100)[-1]


if __name__ == "__main__":
    main()
