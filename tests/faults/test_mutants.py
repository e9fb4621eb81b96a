"""Does this suite bite? Each promise is broken on purpose, by a change in the process, and must be seen to be broken.

Every scenario runs as it is, and must be clean; and with its mutants, and must not be.
"""

import asyncio
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import Driver
from tests.faults.oracle import Verdict
from tests.faults.power import Watch
from tests.faults.sinks import Sinks
from tests.faults.system import Rig, system
from tests.faults.test_under_load import _limit, scene
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def _consumers_die_at_work(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Kill the mailer and the leaderboard while they have their hands full."""
    async with scene(
        rig, folder, changes=("hurry", *mutants), services=("gateway", "mailer", "leaderboard", "notifier")
    ) as play:
        play.system.smtp.delay = 0.3
        await asyncio.gather(*(play.driver.mail() for _ in range(150)), *(play.driver.scores(10) for _ in range(50)))
        await wait_until(lambda: len(play.system.smtp.mails) > 20, 20, "mails are going out")
        for _ in range(3):
            await asyncio.gather(*(play.driver.scores(10) for _ in range(20)))
            for name in ("mailer", "leaderboard"):
                await play.system.restart(name)
            await asyncio.sleep(2)
        play.system.smtp.delay = 0.0
        return await play.sinks.settle(play.driver, timeout=15 if mutants else 60)


async def _leaderboard_dies_after_its_commit(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Kill the leaderboard between its commit and its ack."""
    async with system(rig, folder, services=("gateway", "leaderboard"), changes=("hurry", *mutants)) as whole:
        driver, sinks, board = Driver(whole), Sinks(whole), whole["leaderboard"]
        await driver.prepare()
        await board.terminate()
        board.fault = "scores.committed"
        board.start()
        await board.ready()
        for _ in range(5):
            hits, hit = whole.controller.hits, whole.controller.next_hit()
            await driver.scores(10)
            await hit
            board.kill()
            board.start()
            await wait_until(lambda hits=hits: whole.controller.hits > hits + 1, 30, "it was taken again")
        return await sinks.settle(driver, timeout=15)


async def _queue_fills_up(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Let 200 mails wait for a queue that holds 20."""
    overflow = {"overflow": mutants[0]} if mutants else {}
    async with scene(rig, folder) as play:
        await _limit(play, "mail.normal", 20, **overflow)
        await play.system["mailer"].terminate()
        for _ in range(200):
            await play.driver.mail("normal")
        await asyncio.sleep(3)
        play.system["mailer"].start()
        return await play.sinks.settle(play.driver, timeout=15 if mutants else 60)


async def _a_required_queue_is_missing(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Delete the queue of the scores, take 30 requests, and make it again."""
    async with scene(rig, folder) as play:
        vhost = play.system.vhost
        if mutants:
            # Another name than ours: applying the topology leaves it.
            await vhost._put(
                f"/api/policies/{vhost.name}/mutant",
                {"pattern": "^(events|work)$", "priority": 9, "apply-to": "exchanges",
                 "definition": {mutants[0]: "unrouted"}},
            )  # fmt: skip
        assert (await vhost.management.delete(f"/api/queues/{vhost.name}/leaderboard.scores")).is_success
        assert all(await asyncio.gather(*(play.driver.scores(10, keyed=False) for _ in range(30))))
        await vhost.apply_topology()
        return await play.sinks.settle(play.driver, timeout=15 if mutants else 60)


async def _power_is_cut(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Cut the power under the gateway while it takes mails in; only what was synced is left of its database."""
    async with system(rig, folder, services=("gateway",), changes=("hurry", *mutants)) as whole:
        driver, gateway = Driver(whole, timeout=5, patience=0), whole["gateway"]
        await asyncio.sleep(1)
        watch = Watch(gateway.pid, whole.database("gateway"))
        await watch.start()
        async with asyncio.timeout(60):
            tasks = [asyncio.create_task(_keep_sending(driver)) for _ in range(10)]
            await wait_until(lambda: len(driver.books.accepted["mail"]) >= 300, 60)
        gateway.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watch.end()
        left = watch.after_the_cut(folder / "left")
        with closing(sqlite3.connect(left)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = {to.partition("@")[0] for (to,) in database.execute("SELECT recipient FROM tasks")}
        return driver.books.balance({"mail": Counter(rows), "score": Counter(), "notification": Counter()})


async def _keep_sending(driver: Driver) -> None:
    while True:
        await driver.mail()


async def _a_queue_is_lost(rig: Rig, folder: Path, *mutants: str) -> Verdict:
    """Lose the tasks on a queue: its broker forgot them."""
    settings = {"gateway": {"republish_minutes": 0.05}}
    options: dict[str, Any] = {"services": ("gateway", "mailer"), "changes": ("hurry", *mutants), "settings": settings}
    async with system(rig, folder, **options) as whole:
        driver, sinks = Driver(whole), Sinks(whole)
        await whole["mailer"].terminate()
        await asyncio.gather(*(driver.mail("normal") for _ in range(50)))
        await wait_until(lambda: sinks.outbox() == 0, 20, "the messages are on their queue")
        await whole.vhost.management.delete(f"/api/queues/{whole.vhost.name}/mail.normal/contents")
        whole["mailer"].start()
        return await sinks.settle(driver, timeout=15 if mutants else 60)


SCENARIOS = {
    "a queue is lost": _a_queue_is_lost,
    "consumers die at work": _consumers_die_at_work,
    "the leaderboard dies after its commit": _leaderboard_dies_after_its_commit,
    "a queue fills up": _queue_fills_up,
    "a required queue is missing": _a_required_queue_is_missing,
    "the power is cut": _power_is_cut,
}

# scenario -> (mutant, which of the books must show it)
MUTANTS = [
    ("a queue is lost", "no_second_question", "lost"),
    ("consumers die at work", "auto_ack", "lost"),
    ("consumers die at work", "no_inbox", "doubled"),
    ("the leaderboard dies after its commit", "no_inbox", "doubled"),
    ("a queue fills up", "drop-head", "lost"),
    ("a required queue is missing", "alternate-exchange", "lost"),
    ("the power is cut", "synchronous_normal", "lost"),
    ("the power is cut", "synchronous_off", "lost"),
]


def _needs(scenario: str) -> None:
    if scenario == "the power is cut" and shutil.which("strace") is None:
        pytest.skip("strace is not installed: run 'apt-get install strace' as root")


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_unchanged_it_is_clean(scenario: str, rig: Rig, tmp_path: Path, record: Any) -> None:
    """The scenarios that the mutants must fail."""
    _needs(scenario)
    verdict = await SCENARIOS[scenario](rig, tmp_path)
    record(scenario, verdict)
    assert verdict.clean, verdict


@pytest.mark.parametrize(("scenario", "mutant", "shown"), MUTANTS)
async def test_a_mutant_is_caught(
    scenario: str, mutant: str, shown: str, rig: Rig, tmp_path: Path, record: Any
) -> None:
    """Broken on purpose, and seen."""
    _needs(scenario)
    verdict = await SCENARIOS[scenario](rig, tmp_path, mutant)
    assert getattr(verdict, shown), f"{mutant} was not noticed: {verdict}"
    record(f"{scenario}, MUTANT {mutant}", verdict, beside="caught")
