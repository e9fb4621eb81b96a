"""Where effects show: the SMTP server, the leaderboard's table, a browser that follows the stream, the dead letters."""

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from bellhop.web import tokens
from tests.faults.driver import CHANNEL, Driver
from tests.faults.oracle import Verdict
from tests.faults.system import System
from tests.support import wait_until
from tests.support.follower import Follower

MARKS = 5


@contextmanager
def looking_into(database: Path) -> Iterator[sqlite3.Connection]:
    """Read a service's database from outside."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        yield connection


def _ask_postgresql(url: str, query: str) -> list[tuple[Any, ...]]:
    async def ask() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:  # the caller's event loop is running already
        return thread.submit(asyncio.run, ask()).result(20)


@asynccontextmanager
async def following(system: System, channels: tuple[str, ...] = (CHANNEL,)) -> AsyncIterator[Follower]:
    """Follow the system's stream until the block ends."""
    token = tokens.mint(system.token_key, "witness", 7200, "stream", channels=channels)
    follower = Follower(system["notifier"].port, token)
    task = asyncio.create_task(follower.run())
    try:
        async with asyncio.timeout(60):
            await follower.live.wait()
        yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])


@dataclass
class Sinks:
    """All of them."""

    system: System
    follower: Follower | None = None

    def effects(self) -> dict[str, Counter[str]]:
        """Count how often each thing has happened."""
        return {
            "mail": self.mails(),
            "score": self.scores(),
            "notification": Counter(self.follower.seen) if self.follower else Counter(),
        }

    def _rows(self, service: str, query: str) -> list[tuple[Any, ...]]:
        """Read a service's database, whichever it is."""
        url = self.system[service].settings["database_url"]
        if url.startswith("postgresql"):
            return _ask_postgresql(url.replace("+asyncpg", ""), query)
        with looking_into(self.system.database(service)) as database:
            return list(database.execute(query))

    def mails(self) -> Counter[str]:
        return Counter(mail.recipients[0].partition("@")[0] for mail in self.system.smtp.mails)

    def scores(self) -> Counter[str]:
        if "leaderboard" not in self.system.services:
            return Counter()
        return Counter(
            {player: round(score) for player, score in self._rows("leaderboard", "SELECT player, score FROM results")}
        )

    def tasks(self) -> dict[str, tuple[str, bool]]:
        """Return what the ledger says: recipient -> (state, uncertain)."""
        rows = self._rows("gateway", "SELECT recipient, state, uncertain FROM tasks")
        return {to.partition("@")[0]: (state, bool(uncertain)) for to, state, uncertain in rows}

    def uncertain(self) -> frozenset[str]:
        return frozenset(name for name, (_, uncertain) in self.tasks().items() if uncertain)

    def dead_letters(self) -> list[tuple[str, str, str]]:
        """Return (queue, reason, error) of each."""
        return self._rows("gateway", "SELECT queue, reason, error FROM dead_letters")

    def outbox(self) -> int:
        count: int = self._rows("gateway", "SELECT count(*) FROM outbox")[0][0]
        return count

    async def waiting(self) -> dict[str, int]:
        """Return the queues that are not empty; a stream, and what nobody reacts to, stay.

        Gateways put a mark among the scores each second, so of those a few are always under way.
        """
        answer = await self.system.vhost.management.get(f"/api/queues/{self.system.vhost.name}")
        return {
            queue["name"]: queue["messages"]
            for queue in answer.json()
            if queue.get("messages", 0) > (MARKS if queue["name"] == "leaderboard.scores" else 0)
            and queue["name"] not in ("notifier.log", "unrouted")
        }

    def done(self, driver: Driver) -> bool:
        """Say whether everything that was accepted has happened, and the ledger knows, and the outbox is empty."""
        return not (driver.books.missing(self.effects()) or self._open_tasks(driver) or self.outbox())

    async def settle(self, driver: Driver, timeout: float = 60.0) -> Verdict:
        """Wait until everything that was accepted has happened and nothing is under way any more, and balance."""
        with contextlib.suppress(AssertionError):  # what is still missing then is lost: the verdict says so
            await wait_until(lambda: self.done(driver), timeout, interval=0.1)
        return driver.books.balance(self.effects(), self.uncertain())

    async def probe(self, driver: Driver, timeout: float = 60.0) -> float:
        """Put one of each kind in; return how many seconds it takes until all three have happened."""
        began = time.monotonic()
        before = {kind: set(names) for kind, names in driver.books.accepted.items()}
        await asyncio.gather(driver.mail("urgent"), driver.notification(), driver.scores(1))
        fresh = {kind: names - before[kind] for kind, names in driver.books.accepted.items()}

        def happened() -> bool:
            effects = self.effects()
            return all(effects[kind][name] for kind, names in fresh.items() for name in names)

        await wait_until(happened, timeout, "what was put in after the fault has happened", interval=0.05)
        return time.monotonic() - began

    def _open_tasks(self, driver: Driver) -> list[str]:
        tasks = self.tasks()
        return [
            name
            for name in driver.books.accepted["mail"]
            if tasks.get(name, ("queued", False))[0] in ("queued", "retrying")
        ]

    def check_mails(self) -> None:
        """All copies of one mail have one Message-ID."""
        ids: dict[str, set[str]] = {}
        for mail in self.system.smtp.mails:
            ids.setdefault(mail.recipients[0], set()).add(str(mail.message["Message-ID"]))
        assert {to for to, names in ids.items() if len(names) > 1} == set()
