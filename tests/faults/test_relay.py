"""The SMTP server misbehaves; what was accepted goes out in the end, or fails with the reason that the server gave."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults import pace
from tests.faults.driver import Driver, numbers
from tests.faults.oracle import Verdict
from tests.faults.proxy import proxy_to
from tests.faults.sinks import Sinks, looking_into
from tests.faults.system import Rig, System, system
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MAILS = 200


@asynccontextmanager
async def mailing(rig: Rig, folder: Path, **options: Any) -> AsyncIterator[tuple[System, Driver, Sinks]]:
    async with system(rig, folder, services=("gateway", "mailer"), **options) as whole:
        yield whole, Driver(whole), Sinks(whole)


def attempts(whole: System) -> dict[str, int]:
    """Return how many attempts each mail took."""
    with looking_into(whole.database("gateway")) as database:
        return dict(database.execute("SELECT recipient, attempt FROM tasks"))


async def _end(sinks: Sinks, driver: Driver, fault: str, record: Any, began: float, beside: str = "") -> Verdict:
    verdict = await sinks.settle(driver, 90)
    record(fault, verdict, recovery=time.monotonic() - began, beside=beside)
    assert verdict.clean, verdict
    sinks.check_mails()
    return verdict


async def _send(driver: Driver, count: int = MAILS) -> None:
    names = await asyncio.gather(*(driver.mail() for _ in range(count)))
    assert all(names)


async def test_not_now(rig: Rig, tmp_path: Path, record: Any) -> None:
    """421, 450, 451 and 452 at every step, several times: retried until it works, within the attempts there are."""
    async with mailing(rig, tmp_path) as (whole, driver, sinks):
        replies = ["421 4.3.2 closing", "450 4.2.1 busy", "451 4.3.0 local error", "452 4.3.1 full"]
        whole.smtp.mail_replies = [*replies, "250 ok"] * 20
        whole.smtp.data_replies = [*replies[1:], "250 ok"] * 20
        await _send(driver)
        await _end(sinks, driver, "SMTP: 421, 450, 451 and 452 again and again", record, time.monotonic())
        most = max(attempts(whole).values())
        assert 1 < most <= 8


async def test_never(rig: Rig, tmp_path: Path, record: Any) -> None:
    """550 for every fourth recipient: failed after one attempt with the server's words; the others go out once."""
    async with mailing(rig, tmp_path) as (whole, driver, sinks):
        first = next(numbers)
        for number in range(first, first + 2 * MAILS):
            if number % 4 == 0:
                whole.smtp.recipient_replies[f"m{number}@example.com"] = ["550 5.1.1 nobody here"]
        await _send(driver)
        await wait_until(
            lambda: all(state in ("sent", "failed") for state, _ in sinks.tasks().values()), 60, "all final"
        )
        failed = {name for name, (state, _) in sinks.tasks().items() if state == "failed"}
        assert failed == {name for name in driver.books.accepted["mail"] if int(name[1:]) % 4 == 0}
        assert set(attempts(whole).values()) == {1}
        driver.books.accepted["mail"] -= failed
        await _end(sinks, driver, "SMTP: 550 for every fourth recipient", record, time.monotonic(),
                   f"{len(failed)} failed after one attempt")  # fmt: skip


async def test_silence_after_the_final_dot(rig: Rig, tmp_path: Path, record: Any) -> None:
    """No reply within the time that is set: a second copy at most, and every one of them marked uncertain."""
    options = {"settings": {"mailer": {"smtp_data_timeout": 2, "smtp_connections": 5}}}
    async with mailing(rig, tmp_path, **options) as (whole, driver, sinks):
        whole.smtp.hold.clear()
        await _send(driver, 5)
        await wait_until(lambda: len(whole.smtp.mails) == 5, 20, "all are there")
        await asyncio.sleep(2.3)
        whole.smtp.hold.set()
        verdict = await _end(sinks, driver, "SMTP: silence after the final dot", record, time.monotonic())
        assert verdict.second_copies == 5
        assert max(sinks.mails().values()) == 2


async def test_dropped_after_the_final_dot(rig: Rig, tmp_path: Path, record: Any) -> None:
    """The connection breaks before the reply to the final dot: the same."""
    async with mailing(rig, tmp_path) as (whole, driver, sinks):
        whole.smtp.hold.clear()
        await _send(driver, 40)
        await wait_until(lambda: len(whole.smtp.mails) >= 10, 20, "some are there")
        whole.smtp.drop()
        whole.smtp.hold.set()
        await _end(sinks, driver, "SMTP: connections dropped after the final dot", record, time.monotonic())
        assert max(sinks.mails().values()) <= 2


async def test_away(rig: Rig, tmp_path: Path, record: Any) -> None:
    """The server is gone: nothing goes out, no attempt is counted, and then everything goes out."""
    gone = pace.seconds(15, 6)
    async with mailing(rig, tmp_path) as (whole, driver, sinks):
        port = whole.smtp.port
        await whole.smtp.stop()
        await _send(driver)
        await asyncio.sleep(gone)
        assert (await whole.http.get(f"{whole['mailer'].url}/readyz")).status_code == 503
        await whole.smtp.start(port)
        await _end(sinks, driver, f"SMTP: unavailable for {gone} s", record, time.monotonic())
        assert set(attempts(whole).values()) == {1}


async def test_slow(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Every word takes 50 to 150 ms, and comes in pieces of 3 bytes: slower, once each."""
    async with proxy_to(1) as proxy, mailing(rig, tmp_path, smtp_port=proxy.port) as (whole, driver, sinks):
        proxy.target, proxy.latency, proxy.piece = whole.smtp.port, (0.05, 0.15), 3000
        began = time.monotonic()
        await _send(driver)
        await _end(sinks, driver, "SMTP: 50 to 150 ms for each word", record, began)
        assert set(attempts(whole).values()) == {1}


async def test_nothing_is_said(rig: Rig, tmp_path: Path, record: Any) -> None:
    """A server that accepts connections and does not greet: given up in time, and no attempt counted."""
    silent = pace.seconds(10, 5)  # longer than the time-out
    options = {"settings": {"mailer": {"smtp_timeout": 3}}}
    async with proxy_to(1) as proxy, mailing(rig, tmp_path, smtp_port=proxy.port, **options) as (whole, driver, sinks):
        proxy.target = whole.smtp.port
        proxy.passing.clear()
        await _send(driver)
        await asyncio.sleep(silent)
        proxy.passing.set()
        await _end(sinks, driver, f"SMTP: no greeting for {silent} s", record, time.monotonic())
        assert set(attempts(whole).values()) == {1}
