"""Two gateways on one PostgreSQL: the same request at both at the same time, and one of them dies in the middle."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.faults.driver import Driver, numbers
from tests.faults.sinks import Sinks
from tests.faults.system import Rig, Service, System, system
from tests.support import wait_until
from tests.support.databases import postgresql_database
from tests.support.ports import lasting_ports

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]

PAIRS = 200
AT_A_TIME = 10
FINAL = {"sent", "failed", "cancelled", "suppressed"}


@dataclass
class Pair:
    """A system whose ledger is in PostgreSQL, with a second gateway."""

    system: System
    second: Service
    driver: Driver
    database: asyncpg.Connection

    async def at_both(self, path: str, body: Any, key: str | None = None) -> list[httpx.Response]:
        """Send the same request to both gateways at the same time, each until it is answered."""
        both = (self.system["gateway"], self.second)
        return list(await asyncio.gather(*(self._until_answered(each, path, body, key) for each in both)))

    async def _until_answered(self, gateway: Service, path: str, body: Any, key: str | None) -> httpx.Response:
        headers = self.driver._headers() | ({} if key is None else {"Idempotency-Key": key})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                answer = await self.system.http.post(f"{gateway.url}{path}", json=body, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.1)
        raise AssertionError(f"{path} was not answered by the gateway at {gateway.url}")

    async def all_at_both(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Do `work` for each number, some at a time; the second gateway is killed in the middle and comes back."""
        turn = asyncio.Semaphore(AT_A_TIME)

        async def one(number: int) -> None:
            async with turn:
                if number == PAIRS // 2:
                    self.second.kill()
                    self.second.start()
                await work(number)

        await asyncio.gather(*(one(number) for number in range(PAIRS)))
        await self.second.ready()

    async def tasks(self) -> dict[str, tuple[str, bool, str]]:
        """Return state, uncertainty and id of each task by its recipient."""
        rows = await self.database.fetch("SELECT recipient, state, uncertain, id FROM tasks")
        assert len({row[0] for row in rows}) == len(rows), "two tasks for one recipient"
        return {row[0].partition("@")[0]: (row[1], row[2], row[3]) for row in rows}

    async def end(self, fault: str, record: Any, beside: str = "") -> None:
        """Wait until every task is final and the outbox is empty, and balance the books."""
        began = time.monotonic()

        async def over() -> bool:
            final = all(state in FINAL for state, _, _ in (await self.tasks()).values())
            return final and not await self.database.fetchval("SELECT count(*) FROM outbox")

        await wait_until(over, 90, "all tasks are final", interval=0.5)
        mails = Sinks(self.system).effects()
        uncertain = frozenset(name for name, (_, doubt, _) in (await self.tasks()).items() if doubt)
        verdict = self.driver.books.balance(mails, uncertain)
        record(f"two gateways, one killed: {fault}", verdict, recovery=time.monotonic() - began, beside=beside)
        assert verdict.clean, verdict
        assert not verdict.second_copies


@asynccontextmanager
async def two_gateways(rig: Rig, folder: Path, server: str) -> AsyncIterator[Pair]:
    async with postgresql_database(server, empty=False) as url:
        settings = {"gateway": {"database_url": url}}
        database = await asyncpg.connect(url.replace("+asyncpg", ""))
        try:
            async with system(rig, folder, services=("gateway", "mailer"), settings=settings) as whole:
                first = whole["gateway"]
                (port,) = lasting_ports(1)
                values = first.settings | {"port": str(port)}
                second = Service("gateway", whole, port, values, first.changes, starts=100)
                whole.services["second"] = second
                second.start()
                await second.ready()
                yield Pair(whole, second, Driver(whole), database)
        finally:
            await database.close()


async def test_the_same_key_at_both(rig: Rig, tmp_path: Path, postgresql: str, record: Any) -> None:
    """One task and one mail, whichever took it first, and both name the same task."""
    async with two_gateways(rig, tmp_path, postgresql) as pair:

        async def one(_: int) -> None:
            name = f"p{next(numbers)}"
            pair.driver.books.attempted["mail"].add(name)
            body = {"to": f"{name}@example.com", "subject": name, "text": "Hello"}
            answers = await pair.at_both("/v1/mail", body, name)
            assert {answer.status_code for answer in answers} == {202}
            assert len({answer.json()["id"] for answer in answers}) == 1
            pair.driver.books.accepted["mail"].add(name)

        await pair.all_at_both(one)
        await pair.end("the same Idempotency-Key at both", record)
        assert len(await pair.tasks()) == PAIRS


async def test_the_same_dead_letter_replayed_at_both(rig: Rig, tmp_path: Path, postgresql: str, record: Any) -> None:
    """Each mail goes out once, whichever gateway replayed its message."""
    async with two_gateways(rig, tmp_path, postgresql) as pair:
        await pair.system["mailer"].terminate()
        assert all(await asyncio.gather(*(pair.driver.mail() for _ in range(PAIRS))))
        channel = await pair.system.vhost.channel()
        queue = await channel.get_queue("mail.normal", ensure=False)
        async with asyncio.timeout(30), queue.iterator() as messages:
            count = 0
            async for message in messages:
                await message.reject(requeue=False)
                count += 1
                if count == PAIRS:
                    break
        await channel.close()
        letters = "SELECT id FROM dead_letters"

        async def stored() -> bool:
            return len(await pair.database.fetch(letters)) == PAIRS

        await wait_until(stored, 30, "all dead letters are stored")
        ids = [row[0] for row in await pair.database.fetch(letters)]
        pair.system["mailer"].start()
        replayed = 0

        async def one(number: int) -> None:
            nonlocal replayed
            answers = await pair.at_both(f"/v1/dead-letters/{ids[number]}/replay", None)
            assert {answer.status_code for answer in answers} <= {202, 404, 409}
            replayed += sum(answer.status_code == 202 for answer in answers)

        await pair.all_at_both(one)
        await pair.end("the same dead letter replayed at both", record, f"{replayed} of {2 * PAIRS} answered 202")


async def test_the_same_cancel_at_both(rig: Rig, tmp_path: Path, postgresql: str, record: Any) -> None:
    """While mails go out: a task that is cancelled was not sent, and one that was not is sent once."""
    async with two_gateways(rig, tmp_path, postgresql) as pair:
        await pair.system["mailer"].terminate()

        async def one(number: int) -> None:
            if number == PAIRS // 4:  # what comes before is on the queue, what comes after is being sent
                pair.system["mailer"].start()
            assert await pair.driver.mail()
            task = pair.driver.ids[max(pair.driver.ids, key=lambda key: int(key.rpartition("m")[2]))][0]
            answers = await pair.at_both(f"/v1/tasks/{task}/cancel", None)
            assert {answer.status_code for answer in answers} <= {200, 202, 409}

        await pair.all_at_both(one)

        async def over() -> bool:
            return all(state in FINAL for state, _, _ in (await pair.tasks()).values())

        await wait_until(over, 60, "all tasks are final", interval=0.5)
        states = {name: state for name, (state, _, _) in (await pair.tasks()).items()}
        cancelled = {name for name, state in states.items() if state == "cancelled"}
        assert set(states.values()) <= {"cancelled", "sent"}
        pair.driver.books.accepted["mail"] -= cancelled
        assert cancelled
        pair.driver.books.attempted["mail"] -= cancelled  # a mail of one of these would be unexpected
        await pair.end("the same cancel at both", record, f"{len(cancelled)} of {PAIRS} cancelled")
