"""Replies of the relay that are not the recipient's fault."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.faults import pace
from tests.faults.driver import Driver, numbers
from tests.faults.sinks import Sinks, looking_into
from tests.faults.system import Rig, Sink, System, system
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MAIL_SERVICES = ("gateway", "mailer")


async def _subscribe(driver: Driver, names: list[str]) -> None:
    people = "email\n" + "\n".join(f"{name}@example.com" for name in names)
    answer = await driver.system.http.post(
        f"{driver.system['gateway'].url}/v1/subscribers/import?lists=news&confirmed=true",
        content=people,
        headers=driver._headers() | {"Content-Type": "text/csv"},
    )
    assert answer.json().get("imported", answer.json()), answer.text


async def _broadcast(driver: Driver, names: list[str]) -> None:
    driver.books.attempted["mail"] |= set(names)
    answer = await driver.post("/v1/broadcasts", {"list": "news", "subject": "News", "text": "Hello"}, "news")
    assert answer is not None
    assert answer.is_success
    driver.books.accepted["mail"] |= set(names)


def _count(whole: System, query: str) -> int:
    with looking_into(whole.database("gateway")) as database:
        return int(database.execute(query).fetchone()[0])


async def test_a_sender_that_the_relay_refuses(rig: Rig, tmp_path: Path, record: Any) -> None:
    """550 to MAIL for 1,000 recipients: nobody is suppressed, nothing fails, and all goes out after the repair."""
    lasting = pace.seconds(15, 6)
    async with system(rig, tmp_path, services=MAIL_SERVICES) as whole:
        driver, sinks = Driver(whole), Sinks(whole)
        names = [f"b{next(numbers)}" for _ in range(1000)]
        await _subscribe(driver, names)
        whole.smtp.mail_replies = ["550 5.1.0 sender denied"] * 1_000_000
        await _broadcast(driver, names)
        await wait_until(lambda: len(whole.smtp.mail_replies) < 999_990, 30, "the relay refuses")
        await asyncio.sleep(lasting)
        assert not whole.smtp.mails
        assert _count(whole, "SELECT count(*) FROM tasks WHERE state = 'failed'") == 0
        refused = 1_000_000 - len(whole.smtp.mail_replies)
        whole.smtp.mail_replies = []
        began = time.monotonic()
        verdict = await sinks.settle(driver, 150)
        record(f"SMTP: 550 to the sender of a broadcast for {lasting} s", verdict, recovery=time.monotonic() - began,
               beside=f"{refused} refusals, none suppressed")  # fmt: skip
        assert verdict.clean, verdict
        assert Counter(state for state, _ in sinks.tasks().values()) == {"sent": 1000}
        assert _count(whole, "SELECT count(*) FROM suppressions") == 0


class _NoReset(Sink):
    async def handle_RSET(self, *_: Any) -> str:  # noqa: N802
        return "502 5.5.1 command not implemented"


async def test_a_relay_without_rset(rig: Rig, tmp_path: Path, record: Any) -> None:
    """RSET is refused after each unknown recipient: the others are sent."""
    relay = _NoReset()
    await relay.start()
    async with system(rig, tmp_path, services=MAIL_SERVICES, smtp_port=relay.port) as whole:
        whole.smtp, own = relay, whole.smtp
        driver, sinks = Driver(whole), Sinks(whole)
        first = next(numbers)
        for number in range(first, first + 500, 4):
            relay.recipient_replies[f"m{number}@example.com"] = ["550 5.1.1 no such user"]
        began = time.monotonic()
        assert all(await asyncio.gather(*(driver.mail() for _ in range(200))))
        unknown = {name for name in driver.books.accepted["mail"] if f"{name}@example.com" in relay.recipient_replies}
        driver.books.accepted["mail"] -= unknown
        verdict = await sinks.settle(driver, 60)
        await wait_until(lambda: _count(whole, "SELECT count(*) FROM tasks WHERE state = 'failed'") == len(unknown), 30)
        record("SMTP: RSET refused after unknown recipients", verdict, recovery=time.monotonic() - began,
               beside=f"{len(unknown)} failed")  # fmt: skip
        assert unknown
        assert verdict.clean, verdict
        await own.stop()
    await relay.stop()


async def test_people_who_leave_before_their_mail(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Suppressed while a mail to them is scheduled, on the queue, or waits for its next attempt: none goes out."""
    async with system(rig, tmp_path, services=MAIL_SERVICES) as whole:
        driver, sinks = Driver(whole), Sinks(whole)
        people = {
            state: [f"{state}{next(numbers)}" for _ in range(20)] for state in ("retrying", "scheduled", "queued")
        }
        due = time.time() + 25
        for name in people["retrying"]:
            whole.smtp.recipient_replies[f"{name}@example.com"] = ["451 4.3.0 not now"]
        await _mail(driver, people["retrying"])
        await _mail(driver, people["scheduled"], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(due)))
        await wait_until(lambda: _in_state(sinks, people["retrying"]) == {"retrying"}, 20, "an attempt failed")
        await whole["mailer"].terminate()
        await _mail(driver, people["queued"])
        names = {name for some in people.values() for name in some}
        for name in names:
            answer = await driver.post("/v1/suppressions", {"address": f"{name}@example.com", "reason": "asked for it"})
            assert answer is not None
            assert answer.is_success
        whole.smtp.recipient_replies.clear()

        async def asked() -> bool:
            return await whole.vhost.depth("mail.cancel") >= 40

        await wait_until(asked, 20, "the mailer is asked about what it may have")
        whole["mailer"].start()
        final = {"cancelled", "suppressed", "failed"}
        await wait_until(lambda: _in_state(sinks, sorted(names)) <= final, 60, "all have ended")
        await wait_until(lambda: time.time() > due + 2, 40, "the time of the scheduled ones has come")
        driver.books.attempted["mail"] -= names  # any mail would be unexpected
        verdict = driver.books.balance(sinks.effects())
        record("suppressed while scheduled, queued and retrying", verdict, runs=len(names), beside="none sent")
        assert not whole.smtp.mails


async def _mail(driver: Driver, names: list[str], send_at: str | None = None) -> None:
    driver.books.attempted["mail"] |= set(names)
    for name in names:
        more = {} if send_at is None else {"send_at": send_at}
        body = {"to": f"{name}@example.com", "subject": name, "text": "Hello"} | more
        answer = await driver.post("/v1/mail", body, name)
        assert answer is not None
        assert answer.is_success


def _in_state(sinks: Sinks, names: list[str]) -> set[str]:
    tasks = sinks.tasks()
    return {tasks[name][0] for name in names if name in tasks}
