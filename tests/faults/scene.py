"""A running system under load, and how every fault ends.

After the fault is over something new goes all the way through (that is the recovery time), then the books are
balanced, and no process had to be helped.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.driver import Driver
from tests.faults.oracle import Verdict
from tests.faults.sinks import Sinks, following
from tests.faults.system import Rig, System, system
from tests.support import wait_until
from tests.support.follower import Follower

PUBLISH_SECONDS = 5.0
"""What one publish may take (`Publisher`'s default); an answer may take a second more."""


@dataclass
class Scene:
    """A running system, somebody who follows its stream, and the books."""

    system: System
    driver: Driver
    sinks: Sinks
    follower: Follower

    async def end(self, fault: str, record: Any, *, runs: int = 1, beside: str = "", gaps: int = 0) -> Verdict:
        """Measure the recovery, balance the books, and keep the line; `gaps`: how many the stream had to announce."""
        recovery = await self.sinks.probe(self.driver)
        verdict = await self.sinks.settle(self.driver)
        record(fault, verdict, runs=runs, recovery=recovery, beside=beside)
        assert verdict.clean, verdict
        assert self.follower.gaps == gaps, "the stream had a gap"
        self.sinks.check_mails()
        assert self.sinks.dead_letters() == []
        await wait_until(lambda: self._empty(), 20, "all queues are empty", interval=0.5)
        assert all(service.running for service in self.system.services.values()), "a process ended by itself"
        return verdict

    async def _empty(self) -> bool:
        return not await self.sinks.waiting()


@asynccontextmanager
async def scene(rig: Rig, folder: Path, **options: Any) -> AsyncIterator[Scene]:
    async with system(rig, folder, **options) as whole, following(whole) as follower:
        driver = Driver(whole)
        await driver.prepare()
        yield Scene(whole, driver, Sinks(whole, follower), follower)
