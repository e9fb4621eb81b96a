"""Virtual hosts with the topology, made before a test asks for one and deleted in the background.

The process that keeps the session's broker runs `keep_pool`. Tests and pool meet in a folder, one empty file a host:

    FOLDER/ready/NAME    has the topology and waits for a test
    FOLDER/taken/NAME    a test has it
    FOLDER/used/NAME     is to be deleted
    FOLDER/error         why the last attempt to make one failed
"""

import asyncio
import secrets
import threading
from pathlib import Path

import httpx

from bellhop.amqp.topology import TopologyError
from tests.support.broker import Broker, Vhost
from tests.support.waiting import wait_until

AHEAD = 4
"""Hosts that wait at most; the first test of a session finds one, so that a single test makes no more than it needs."""
LOOK_SECONDS = 0.03
WAIT_SECONDS = 60.0


class Pool:
    """A test's side of the pool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def take(self) -> str:
        """Return the name of a virtual host that has the topology and that no other test gets."""
        try:
            return await wait_until(self._claim, WAIT_SECONDS, "a virtual host is ready")
        except AssertionError as error:
            failure = self.folder / "error"
            raise AssertionError(failure.read_text() if failure.exists() else str(error)) from None

    def give_back(self, name: str) -> None:
        """Have a virtual host deleted, whether it came from the pool or not."""
        (self.folder / "used" / name).touch()
        (self.folder / "taken" / name).unlink(missing_ok=True)

    def _claim(self) -> str | None:
        for file in (self.folder / "ready").iterdir():
            try:
                file.rename(self.folder / "taken" / file.name)
            except FileNotFoundError:  # another worker was faster
                continue
            return file.name
        return None


def start_pool(folder: Path, broker: Broker) -> None:
    """Fill the pool in a thread that ends with this process."""
    for name in ("ready", "taken", "used"):
        (folder / name).mkdir(parents=True)
    threading.Thread(target=lambda: asyncio.run(_keep(folder, broker)), daemon=True).start()


async def _keep(folder: Path, broker: Broker) -> None:
    await asyncio.gather(_make(folder, broker), _delete(folder, broker))


async def _make(folder: Path, broker: Broker) -> None:
    most_taken = 0
    while True:
        most_taken = max(most_taken, len(list((folder / "taken").iterdir())))
        if len(list((folder / "ready").iterdir())) >= min(AHEAD, 1 + most_taken):
            await asyncio.sleep(LOOK_SECONDS)
            continue
        vhost = Vhost(broker, f"test-{secrets.token_hex(6)}")
        try:
            await vhost.create()
            await vhost.apply_topology()
        except (AssertionError, TopologyError, httpx.HTTPError) as error:
            (folder / "error").write_text(f"no virtual host could be made: {error or type(error).__name__}")
            await asyncio.sleep(1)
        else:
            (folder / "ready" / vhost.name).touch()
            (folder / "error").unlink(missing_ok=True)
        finally:
            await vhost.disconnect()


async def _delete(folder: Path, broker: Broker) -> None:
    async with broker.management() as management:
        while True:
            for file in (folder / "used").iterdir():
                try:
                    await management.delete(f"/api/vhosts/{file.name}")
                except httpx.HTTPError:
                    continue  # tried again with the next look
                file.unlink()
            await asyncio.sleep(LOOK_SECONDS)
