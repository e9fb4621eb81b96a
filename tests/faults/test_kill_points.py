"""kill -9, exactly at the points where a process knows something that nobody else knows yet.

In each lane a system of its own runs. For one point after the other, one service is started with that point armed.
Then, again and again: put something in, wait until the service stands at the point, kill it, start it again, and see
the thing happen once. Whatever comes to the point in between goes on.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults import pace
from tests.faults.driver import Driver
from tests.faults.oracle import Verdict
from tests.faults.sinks import Sinks
from tests.faults.system import Rig, System, system
from tests.support import wait_until

LANES = 4

Put = Callable[[Driver], Awaitable[bool]]


def _mail(driver: Driver) -> Awaitable[bool]:
    return driver.mail()


def _scores(driver: Driver) -> Awaitable[bool]:
    return driver.scores(3)


# point -> (the service that dies there, what is put in, what it means)
POINTS: dict[str, tuple[str, Put, str]] = {
    "accept.committed": ("gateway", _mail, "gateway: after the commit, before the answer"),
    "outbox.claimed": ("gateway", _mail, "gateway: between the outbox's commit and the publish"),
    "publisher.before_write": ("gateway", _scores, "gateway: before the publish is written"),
    "publisher.after_write": ("gateway", _scores, "gateway: after the publish is written, before the confirm"),
    "publisher.after_confirm": ("gateway", _mail, "gateway: after the confirm"),
    "outbox.confirmed": ("gateway", _scores, "gateway: between the confirm and its mark in the outbox"),
    "mail.before_connect": ("mailer", _mail, "mailer: before it takes a connection"),
    "mail.before_data": ("mailer", _mail, "mailer: before MAIL and DATA"),
    "mail.after_dot": ("mailer", _mail, "mailer: between the final dot and 250"),
    "mail.after_reply": ("mailer", _mail, "mailer: after 250, before the inbox's commit"),
    "mail.recorded": ("mailer", _mail, "mailer: after the commit, before the outcome is published"),
    "mail.reported": ("mailer", _mail, "mailer: after the outcome is published, before the ack"),
    "scores.committed": ("leaderboard", _scores, "leaderboard: after the commit, before the ack"),
}


async def kill_at(system: System, point: str, kills: int) -> tuple[Verdict, float]:
    """Kill the service `kills` times at `point`; return the balance, and the longest time to the effect."""
    name, put, _ = POINTS[point]
    service = system[name]
    if service.running:
        await service.ready()  # a process that has just begun does not know yet how to stop in order
        assert await service.terminate() == 0
    service.fault = point
    service.start()
    await service.ready()
    driver, sinks, longest = Driver(system), Sinks(system), 0.0
    first = len(system.smtp.mails)
    for _ in range(kills):
        hits, hit = system.controller.hits, system.controller.next_hit()
        putting = asyncio.ensure_future(put(driver))
        async with asyncio.timeout(30):
            pid = await hit
        assert pid == service.pid
        service.kill()
        killed = time.monotonic()
        service.start()
        assert await putting
        await wait_until(lambda: sinks.done(driver), 40, "it is done", interval=0.05)
        if point == "scores.committed":  # it comes again, and to the point again, although there is nothing to do
            await wait_until(lambda hits=hits: system.controller.hits > hits + 1, 40, "it was taken again")
        longest = max(longest, time.monotonic() - killed)
    service.fault = None
    verdict = await sinks.settle(driver)
    assert max(sinks.mails().values(), default=0) <= 2
    # Other points' effects are in the same sinks.
    ours = {id for ids in driver.books.attempted.values() for id in ids}
    verdict.unexpected = {mail.recipients[0].partition("@")[0] for mail in system.smtp.mails[first:]} - ours
    verdict.doubled &= ours
    verdict.second_copies = len(ours & sinks.uncertain() & {id for id, n in sinks.mails().items() if n > 1})
    assert all(len(set(ids)) == 1 for ids in driver.ids.values())
    return verdict, longest


async def kill_in_lanes(rig: Rig, folder: Path, points: list[str], kills: int, record: Any) -> None:
    """Spread the kills over lanes that run side by side, each through the points in a random order of its own."""
    found: dict[str, list[tuple[Verdict, float]]] = {point: [] for point in points}
    share = [(kills + number) // LANES for number in range(LANES)]

    async def lane(number: int) -> None:
        async with system(rig, folder / f"lane{number}", services=("gateway", "mailer", "leaderboard")) as whole:
            await Driver(whole).prepare()
            # A reply that takes a moment: so that "between the final dot and 250" is a time and not an instant.
            whole.smtp.delay = 0.1
            order = pace.dice(f"lane {number}").sample(points, len(points))
            for point in order:
                found[point].append(await kill_at(whole, point, share[number]))
            Sinks(whole).check_mails()
            await wait_until(lambda: _nothing_waits(whole), 20, "all queues are empty")
            assert Sinks(whole).dead_letters() == []

    await asyncio.gather(*(lane(number) for number in range(LANES)))
    failures = []
    for point, lanes in found.items():
        verdicts = [verdict for verdict, _ in lanes]
        whole = Verdict(
            sum(verdict.things for verdict in verdicts),
            set().union(*(verdict.lost for verdict in verdicts)),
            set().union(*(verdict.unexpected for verdict in verdicts)),
            set().union(*(verdict.doubled for verdict in verdicts)),
            sum(verdict.second_copies for verdict in verdicts),
        )
        record(f"kill -9 of {POINTS[point][2]}", whole, runs=kills, recovery=max(time for _, time in lanes))
        if not whole.clean:
            failures.append(f"{point}: {whole}")
    assert not failures


async def _nothing_waits(whole: System) -> bool:
    return not await Sinks(whole).waiting()


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", ["gateway", "mailer", "leaderboard"])
async def test_kill_at_every_point(service: str, rig: Rig, tmp_path: Path, record: Any) -> None:
    """Whatever the moment, what was answered 2xx happens, and happens once (a mail: twice at most, and marked)."""
    points = [point for point, (name, _, _) in POINTS.items() if name == service]
    await kill_in_lanes(rig, tmp_path, points, pace.KILLS, record)
