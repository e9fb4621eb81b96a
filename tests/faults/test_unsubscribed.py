"""Readers leave by the link in a mail while another mail to them is under way."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from services.gateway.public_pages.links import Links
from tests.faults.driver import Driver, numbers
from tests.faults.sinks import Sinks, looking_into
from tests.faults.system import Rig, System, system
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MAIL_SERVICES = ("gateway", "mailer")
READERS = 5
"""Of each list: so many mails of a small broadcast are under way at the same time."""
LISTS = 4
FINAL = {"cancelled", "suppressed", "failed"}


class Readers:
    """The readers of some lists, and their broadcasts."""

    def __init__(self, driver: Driver, state: str) -> None:
        self.driver = driver
        self.lists = {
            f"{state}-{number}": [f"{state}{next(numbers)}" for _ in range(READERS)] for number in range(LISTS)
        }
        self.names = [name for some in self.lists.values() for name in some]

    async def subscribe(self) -> None:
        for list_, names in self.lists.items():
            for name in names:
                person = {"email": f"{name}@example.com", "lists": [list_], "confirmed": True}
                assert await self.driver.post("/v1/subscribers", person, name)

    async def mail(self, **more: Any) -> None:
        """Make a broadcast to each list."""
        self.driver.books.attempted["mail"] |= set(self.names)
        for list_ in self.lists:
            issue = {"list": list_, "subject": "News", "text": "News."} | more
            assert await self.driver.post("/v1/broadcasts", issue, list_)

    async def leave(self) -> None:
        """Post to the link of a mail, as a mail program does (RFC 8058)."""
        whole = self.driver.system
        links = Links([whole.token_key], whole["gateway"].url)
        with looking_into(whole.database("gateway")) as database:
            ids = dict(database.execute("SELECT email, id FROM subscribers"))
        for list_, names in self.lists.items():
            for name in names:
                link = links.unsubscribe(ids[f"{name}@example.com"], list_)
                answer = await whole.http.post(link, data={"List-Unsubscribe": "One-Click"})
                assert answer.status_code == 200, answer.text


def _states(sinks: Sinks, readers: Readers) -> list[str]:
    tasks = sinks.tasks()
    return [tasks[name][0] for name in readers.names if name in tasks]


async def test_readers_who_leave_before_their_mail(rig: Rig, tmp_path: Path, record: Any) -> None:
    """The broadcast is scheduled, on the queue, or waits for its next attempt: none goes out."""
    async with system(rig, tmp_path, services=MAIL_SERVICES) as whole:
        driver, sinks = Driver(whole), Sinks(whole)
        retrying, scheduled, queued = everybody = [Readers(driver, s) for s in ("retrying", "scheduled", "queued")]
        for readers in everybody:
            await readers.subscribe()
        due = time.time() + 25
        for name in retrying.names:
            whole.smtp.recipient_replies[f"{name}@example.com"] = ["451 4.3.0 not now"]
        await retrying.mail()
        await scheduled.mail(send_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(due)))
        await _reach(sinks, retrying, {"retrying"})
        await whole["mailer"].terminate()
        await queued.mail()
        await _reach(sinks, queued, {"queued"})
        await asyncio.gather(*(readers.leave() for readers in everybody))
        whole.smtp.recipient_replies.clear()
        await wait_until(lambda: _asked(whole), 20, "the mailer is asked about what it may have")
        whole["mailer"].start()
        for readers in (retrying, queued):
            await _reach(sinks, readers, FINAL)
        await wait_until(lambda: time.time() > due, 40, "the time of the scheduled ones has come")
        await wait_until(lambda: _over(whole), 40, "all broadcasts are over", interval=0.5)
        names = {name for readers in everybody for name in readers.names}
        driver.books.attempted["mail"] -= names  # any mail would be unexpected
        verdict = driver.books.balance(sinks.effects())
        record("unsubscribed while a broadcast is scheduled, queued and retrying", verdict, runs=len(names),
               beside="none sent")  # fmt: skip
        assert verdict.clean, verdict
        assert not whole.smtp.mails


async def _reach(sinks: Sinks, readers: Readers, states: set[str]) -> None:
    def there() -> bool:
        found = _states(sinks, readers)
        return len(found) == len(readers.names) and set(found) <= states

    await wait_until(there, 60, f"all are {' or '.join(sorted(states))}")


async def _asked(whole: System) -> bool:
    return await whole.vhost.depth("mail.cancel") >= 2 * READERS * LISTS


def _over(whole: System) -> bool:
    with looking_into(whole.database("gateway")) as database:
        left = database.execute("SELECT count(*) FROM broadcasts WHERE finished_at IS NULL").fetchone()
    return bool(left[0] == 0)
