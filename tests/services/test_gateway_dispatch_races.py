"""Two gateways run one broadcast, on both databases: each step is made by one of them, whatever is asked meanwhile."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.contracts.base import new_id
from bellhop.contracts.outcomes import State
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.broadcasts import dispatching
from services.gateway.broadcasts.dispatching import TaskMaker
from services.gateway.broadcasts.store import Action, Broadcasts, Phase
from services.gateway.public_pages.links import Links
from services.gateway.suppressions.store import SuppressionStore
from services.gateway.tables import audit, broadcasts, subscribers, subscriptions, tasks
from services.gateway.tables import outbox as outbox_table

PEOPLE = [f"person-{number:03}@example.com" for number in range(90)]
ROUNDS = 5


class Gateway:
    """What one gateway runs broadcasts with."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.store = Broadcasts(self.database)
        self.maker = TaskMaker(SuppressionStore(self.database, 30), Links(["k" * 40], "https://news.example.com"))

    async def step(self, broadcast_id: str, room: int, *, again: bool = False) -> int:
        dispatch = self.maker.dispatch_failed if again else self.maker.dispatch
        async with self.database.write() as connection:
            return (await dispatch(connection, broadcast_id, room, claimed=False)).count

    async def conclude(self, broadcast_id: str, phase: Phase) -> bool:
        async with self.database.write() as connection:
            return await dispatching.conclude(connection, broadcast_id, phase)


@pytest.fixture
async def gateways(database_url: str) -> AsyncIterator[list[Gateway]]:
    await migrate(database_url, "services.gateway")
    both = [Gateway(database_url), Gateway(database_url)]
    async with both[0].database.write() as connection:
        people = {"name": "", "attributes": b"{}", "created_at": 1, "updated_at": 1}
        await insert_many(connection, subscribers, [{"email": email, "id": new_id()} | people for email in PEOPLE])
        confirmed = {"list": "news", "state": "confirmed", "created_at": 1, "confirmed_at": 1}
        await insert_many(connection, subscriptions, [{"email": email} | confirmed for email in PEOPLE])
    yield both
    for each in both:
        await each.database.close()


async def add(gateway: Gateway, phase: Phase = Phase.RUNNING, **changes: Any) -> str:
    """Make a broadcast and return its id."""
    values: dict[str, Any] = {
        "id": new_id(), "owner": "shop", "list": "news", "state": phase.value,
        "content": orjson.dumps({"subject": "s", "text": "t"}), "total": len(PEOPLE), "dispatched": 0,
        "dispatch_cursor": "", "all_dispatched": False, "cancel_after": "", "created_at": 1, "started_at": 2,
    }  # fmt: skip
    async with gateway.database.write() as connection:
        await connection.execute(sa.insert(broadcasts).values(values | changes))
    return str(values["id"])


async def rows(gateway: Gateway, query: sa.Select[Any]) -> list[Any]:
    async with gateway.database.read() as connection:
        return list(await connection.execute(query))


async def mailed(gateway: Gateway, broadcast_id: str) -> Counter[str]:
    """Return how many messages there are for each recipient."""
    joined = outbox_table.join(tasks, tasks.c.id == outbox_table.c.task_id)
    query = sa.select(tasks.c.recipient).select_from(joined).where(tasks.c.broadcast_id == broadcast_id)
    return Counter(recipient for (recipient,) in await rows(gateway, query))


async def phase_of(gateway: Gateway, broadcast_id: str) -> Phase:
    ((phase,),) = await rows(gateway, sa.select(broadcasts.c.state).where(broadcasts.c.id == broadcast_id))
    return Phase(phase)


async def set_states(gateway: Gateway, broadcast_id: str, state: State) -> None:
    async with gateway.database.write() as connection:
        await connection.execute(
            sa.update(tasks).where(tasks.c.broadcast_id == broadcast_id).values(state=state.value, finished_at=3)
        )


async def test_two_gateways_begin_a_broadcast_once(gateways: list[Gateway]) -> None:
    """The first one says when; the other finds it running."""
    for _ in range(ROUNDS):
        broadcast_id = await add(gateways[0], Phase.SCHEDULED, started_at=None)

        async def begin(gateway: Gateway, total: int, broadcast_id: str = broadcast_id) -> None:
            async with gateway.database.write() as connection:
                await dispatching.begin(connection, broadcast_id, total)

        await asyncio.gather(*(begin(gateway, 10 + n) for n, gateway in enumerate(gateways)))
        query = sa.select(broadcasts.c.state, broadcasts.c.total).where(broadcasts.c.id == broadcast_id)
        ((state, total),) = await rows(gateways[0], query)
        assert (state, total in (10, 11)) == ("running", True)


async def test_two_gateways_make_one_mail_for_each_subscriber(gateways: list[Gateway]) -> None:
    """While it is paused and resumed at both; a pause keeps everything that follows it from being made."""
    for _ in range(ROUNDS):
        broadcast_id = await add(gateways[0])

        async def dispatch(gateway: Gateway, broadcast_id: str = broadcast_id) -> None:
            while (await mailed(gateway, broadcast_id)).total() < len(PEOPLE):
                await gateway.step(broadcast_id, 7)

        async def act(gateway: Gateway, broadcast_id: str = broadcast_id) -> None:
            for action in (Action.PAUSE, Action.RESUME) * 3:
                sensible, _ = await gateway.store.act(broadcast_id, action, "tests")
                assert sensible
            sensible, _ = await gateway.store.act(broadcast_id, Action.RESUME, "tests")
            assert sensible

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for gateway in gateways:
                group.create_task(dispatch(gateway))
                group.create_task(act(gateway))
        assert await mailed(gateways[0], broadcast_id) == Counter(PEOPLE)
        query = sa.select(broadcasts.c.dispatched).where(broadcasts.c.id == broadcast_id)
        assert await rows(gateways[0], query) == [(len(PEOPLE),)]


async def test_after_a_pause_or_a_cancel_no_gateway_makes_a_task(gateways: list[Gateway]) -> None:
    """The answer to either is given after the last step."""
    for action in (Action.PAUSE, Action.CANCEL) * ROUNDS:
        broadcast_id = await add(gateways[0])
        stopped = asyncio.Event()

        async def dispatch(
            gateway: Gateway, broadcast_id: str = broadcast_id, stopped: asyncio.Event = stopped
        ) -> None:
            while not stopped.is_set():
                await gateway.step(broadcast_id, 3)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for gateway in gateways:
                group.create_task(dispatch(gateway))
            await gateways[1].store.act(broadcast_id, action, "tests")
            made = (await mailed(gateways[0], broadcast_id)).total()
            for gateway in gateways:
                assert await gateway.step(broadcast_id, 3) == 0
            stopped.set()
        assert (await mailed(gateways[0], broadcast_id)).total() == made


async def test_an_action_at_both_gateways_happens_once(gateways: list[Gateway]) -> None:
    """Both are told that it is so, and one of them notes it."""
    for action, phase in ((Action.PAUSE, Phase.PAUSED), (Action.CANCEL, Phase.CANCELLING)) * ROUNDS:
        broadcast_id = await add(gateways[0])
        asked = await asyncio.gather(*(gateway.store.act(broadcast_id, action, "tests") for gateway in gateways))
        assert asked == [(True, phase)] * 2
        assert len(await rows(gateways[0], sa.select(audit.c.id).where(audit.c.subject == broadcast_id))) == 1


async def test_of_a_cancel_and_a_resume_the_cancel_stays(gateways: list[Gateway]) -> None:
    """In whichever order they come to the database."""
    for _ in range(2 * ROUNDS):
        broadcast_id = await add(gateways[0], Phase.PAUSED)
        await asyncio.gather(
            gateways[0].store.act(broadcast_id, Action.RESUME, "tests"),
            gateways[1].store.act(broadcast_id, Action.CANCEL, "tests"),
        )
        assert await phase_of(gateways[0], broadcast_id) is Phase.CANCELLING


async def test_what_failed_is_retried_by_one_gateway_each(gateways: list[Gateway]) -> None:
    """One further round and one message for each, and the broadcast ends once."""
    for _ in range(ROUNDS):
        broadcast_id = await add(gateways[0])
        while await gateways[0].step(broadcast_id, 50):
            pass
        await set_states(gateways[0], broadcast_id, State.FAILED)
        async with gateways[0].database.write() as connection:
            await connection.execute(sa.delete(outbox_table))
        assert await gateways[0].store.act(broadcast_id, Action.RETRY_FAILED, "tests") == (True, Phase.RUNNING)

        async def retry(gateway: Gateway, broadcast_id: str = broadcast_id) -> None:
            while (await mailed(gateway, broadcast_id)).total() < len(PEOPLE):
                await gateway.step(broadcast_id, 7, again=True)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for gateway in gateways:
                group.create_task(retry(gateway))
        assert await mailed(gateways[0], broadcast_id) == Counter(PEOPLE)
        found = await rows(gateways[0], sa.select(tasks.c.round).where(tasks.c.broadcast_id == broadcast_id))
        assert {round_ for (round_,) in found} == {2}
        await gateways[0].step(broadcast_id, 7, again=True)
        await set_states(gateways[0], broadcast_id, State.SENT)
        ended = await asyncio.gather(*(each.conclude(broadcast_id, Phase.RUNNING) for each in gateways for _ in "12"))
        assert ended.count(True) == 1
        assert await phase_of(gateways[0], broadcast_id) is Phase.FINISHED
