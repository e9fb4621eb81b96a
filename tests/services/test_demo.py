"""`bellhop demo` against everything that `bellhop up` runs: green as it is, and green while services are killed."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator

import httpx
import pytest

from bellhop import catalog
from bellhop.demo import live, mail, newsletter, scores
from bellhop.demo.run import STEPS
from bellhop.demo.steps import StepResult, System
from tests.services.test_run_up import Run
from tests.support import wait_until
from tests.support.ports import lasting_ports

pytestmark = pytest.mark.xdist_group("demo")  # all tests of this module share one system

Step = Callable[[System], Awaitable[StepResult]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One system for all tests of this module."""
    run = Run(tmp_path_factory.mktemp("demo"))
    yield run
    run.end()


@pytest.fixture
async def running(home: Run) -> Run:
    """It, up."""
    if home.process is None:
        await home.start()
    return home


class Demo:
    """One run of the demo."""

    def __init__(self, run: Run) -> None:
        self.output = run.home.parent / f"demo-{os.urandom(4).hex()}"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "bellhop.cli.main", "demo"],
                env=run.environment | {"COLUMNS": "150"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.output.read_text()

    async def done(self, steps: int) -> None:
        """Wait until so many steps are done, and it goes on."""
        await wait_until(lambda: self.said.count("✔ ") >= steps or self.process.poll() is not None, 100)
        assert self.process.poll() is None, f"the demo ended before step {steps + 1} could be disturbed: {self.said}"

    async def end(self) -> int:
        """Return its exit code."""
        try:
            await wait_until(lambda: self.process.poll() is not None, 250, "the demo ends")
        finally:
            self.process.kill()
        return self.process.wait()


@pytest.mark.timeout(300)
async def test_everything_that_the_demo_sends_is_done(running: Run) -> None:
    """Exit code 0, one row for each step, and nothing lost."""
    demo = Demo(running)
    assert await demo.end() == 0, demo.said
    assert sum(line.startswith("│ ") for line in demo.said.splitlines()) == len(STEPS)
    assert "nothing is lost" in demo.said


# Each service dies while a step that needs it is under way: (service, steps done before, seconds after that).
KILLS = [
    ("gateway", mail.mails, 1.0),
    ("mailer", mail.mails, 0.5),
    ("gateway", newsletter.sign_ups, 0.5),
    ("gateway", newsletter.broadcasts, 0.5),
    ("mailer", newsletter.broadcasts, 0.7),
    ("notifier", live.notifications, 1.0),
    ("gateway", live.notifications, 1.5),
    ("leaderboard", scores.scores, 0.3),
    ("gateway", scores.scores, 0.1),
]


@pytest.mark.faults
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("service", "step", "seconds"), KILLS)
async def test_no_single_death_loses_anything(running: Run, service: str, step: Step, seconds: float) -> None:
    """kill -9 in the middle: clients come back, retries change nothing twice, and every step is green."""
    await wait_until(lambda: everything_is_ready(running), 60, "what an earlier test killed is back")
    demo = Demo(running)
    await demo.done(STEPS.index(step))
    await asyncio.sleep(seconds)  # a moment within the step; which one is of no matter
    [pid] = running.pids(f"services.{service}\0")
    os.kill(pid, signal.SIGKILL)
    assert demo.process.poll() is None, demo.said
    assert await demo.end() == 0, demo.said
    assert "nothing is lost" in demo.said


async def everything_is_ready(running: Run) -> bool:
    """Say whether every service is."""
    async with httpx.AsyncClient(trust_env=False, timeout=5) as http:
        try:
            answers = [await http.get(f"{running.url(name.upper())}/readyz") for name in catalog.NAMES]
        except httpx.TransportError:
            return False
    return all(answer.is_success for answer in answers)


def test_a_system_that_is_not_up_is_told_in_one_sentence() -> None:
    """Exit code 1, at once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")}
    environment |= {"BELLHOP_URL": f"http://127.0.0.1:{lasting_ports(1)[0]}", "BELLHOP_ADMIN_KEY": "bh_any"}
    done = subprocess.run(
        [sys.executable, "-m", "bellhop.cli.main", "demo"],
        check=False, capture_output=True, text=True, env=environment, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bellhop: Bellhop is not up at http://127.0.0.1:")
    assert "make up" in done.stderr
    assert done.stderr.count("\n") == 1
