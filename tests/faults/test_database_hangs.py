"""PostgreSQL hangs under load: frozen, locked, or behind a cut cable. A hang is no error, and nothing tells of it.

Services on PostgreSQL, and the same books as in `test_under_load.py`. No request waits longer than `ANSWER_SECONDS`.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from tests.faults import pace
from tests.faults.proxy import cable_to
from tests.faults.scene import Scene, scene
from tests.faults.system import Rig
from tests.support.postgresql import find_binaries, frozen, private_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

ANSWER_SECONDS = 10.0
NAMES = ("gateway", "mailer", "leaderboard")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, Any]]:
    """A PostgreSQL that may be frozen."""
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with private_server() as made:
        yield made


async def databases(server: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Make a database for each service, and return the settings that name them."""
    connection = await asyncpg.connect(server["url"].replace("+asyncpg", "") + "/postgres")
    found = {}
    for name in NAMES:
        await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await connection.execute(f"CREATE DATABASE {name}")
        found[name] = {"database_url": f"{server['url']}/{name}"}
    await connection.close()
    return found


async def end(play: Scene, fault: str, record: Any) -> None:
    await play.system.all_ready()
    beside = f"slowest answer {play.driver.slowest:.1f} s, {play.driver.statuses['503']} answers 503"
    await play.end(fault, record, beside=beside)
    assert play.driver.slowest <= ANSWER_SECONDS


async def test_database_frozen(rig: Rig, server: dict[str, Any], tmp_path: Path, record: Any) -> None:
    """SIGSTOP of PostgreSQL with all its backends: connections stay open, and nothing answers."""
    lasting = pace.seconds(40, 12)
    async with scene(rig, tmp_path, settings=await databases(server)) as play:
        play.driver.timeout = 20
        async with play.driver.load():
            await asyncio.sleep(2)
            with frozen(server["pid"]):
                await asyncio.sleep(lasting)
            await play.system.all_ready()
        await end(play, f"PostgreSQL frozen for {lasting} s (SIGSTOP)", record)


async def test_tasks_locked_while_mails_fall_due(rig: Rig, server: dict[str, Any], tmp_path: Path, record: Any) -> None:
    """Another session holds LOCK TABLE tasks: what falls due meanwhile goes out once, afterwards."""
    lasting = pace.seconds(36, 10)
    settings = await databases(server)
    async with scene(rig, tmp_path, settings=settings) as play:
        play.driver.timeout = 20
        for number in range(50):
            due = datetime.now(UTC) + timedelta(seconds=4 + lasting * number / 50)
            assert await play.driver.mail(send_at=due)
        url = settings["gateway"]["database_url"].replace("+asyncpg", "")
        locker = await asyncpg.connect(url)
        async with play.driver.load():
            async with locker.transaction():
                await locker.execute("LOCK TABLE tasks")
                await asyncio.sleep(lasting)
            await play.system.all_ready()
        await locker.close()
        await end(play, f"LOCK TABLE tasks for {lasting} s while mails with send_at fall due", record)


async def test_database_behind_a_cut_cable(rig: Rig, server: dict[str, Any], tmp_path: Path, record: Any) -> None:
    """The gateway's packets to PostgreSQL vanish, without a reset, for open connections and for new ones."""
    lasting = pace.seconds(40, 12)
    settings = await databases(server)
    url = make_url(settings["gateway"]["database_url"])
    with cable_to(url.port or 0) as cable:
        settings["gateway"]["database_url"] = url.set(port=cable.port).render_as_string(hide_password=False)
        async with scene(rig, tmp_path, settings=settings) as play:
            play.driver.timeout = 20
            async with play.driver.load():
                await asyncio.sleep(2)
                cable.cut()
                await asyncio.sleep(lasting)
                cable.mend()
                await play.system.all_ready()
            await end(play, f"gateway cut from PostgreSQL for {lasting} s, without a reset", record)
