"""Loops that end only when they are told to."""

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import pytest
from structlog.testing import capture_logs

from bellhop import background as module
from bellhop.background import Background
from bellhop.errors import Unavailable
from tests.support.waiting import wait_until


@pytest.fixture
async def background(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Background]:
    monkeypatch.setattr(module, "MAX_BACK_OFF_SECONDS", 0.01)
    loops = Background()
    yield loops
    await loops.stop()


class Rounds:
    """An action that fails as long as it is told to."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.done = 0

    async def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.done += 1


async def test_an_exception_does_not_end_a_loop(background: Background) -> None:
    """After any error, and after a cancellation that nobody asked for, the next round comes."""
    rounds = Rounds(ZeroDivisionError(), TimeoutError(), asyncio.CancelledError())
    background.every("counting", 0.001, rounds)
    await wait_until(lambda: rounds.done > 2)
    assert background.failure is None


async def test_one_kind_of_error_is_logged_once(background: Background) -> None:
    """Fifty rounds that fail for the same reason are one line, and the recovery is another."""
    rounds = Rounds(*(Unavailable("the database does not answer") for _ in range(50)))
    with capture_logs() as lines:
        background.every("counting", 0.001, rounds)
        await wait_until(lambda: rounds.done)
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "a dependency is unavailable; trying again"),
        ("info", "recovered"),
    ]


async def test_a_round_that_hangs_is_cancelled_at_its_limit(background: Background) -> None:
    """A hang counts as a failed round."""
    hangs = [asyncio.Event()]

    async def action() -> None:
        if hangs:
            await hangs.pop().wait()
        done.set()

    done = asyncio.Event()
    background.every("hanging", 0.001, action, limit=0.05)
    await asyncio.wait_for(done.wait(), 5)


async def test_no_progress_is_trouble_that_names_the_loop(background: Background) -> None:
    """Failing for longer than the limit is told with the reason, until a round succeeds."""
    rounds = Rounds(*(ValueError("no such thing") for _ in range(10_000)))
    background.every("counting", 0.001, rounds, limit=0.05)
    await wait_until(lambda: background.failure)
    assert "counting: no progress" in str(background.failure)
    assert "ValueError: no such thing" in str(background.failure)
    rounds.errors.clear()
    await wait_until(lambda: background.failure is None)


async def test_waiting_for_the_next_round_is_no_trouble(
    background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that has nothing to do for longer than its limit is well."""
    rounds = Rounds()
    background.every("yearly", 1e7, rounds)
    await wait_until(lambda: rounds.done)
    monkeypatch.setattr(module, "monotonic", lambda: 1e6 + monotonic())
    assert background.failure is None


async def test_a_loop_can_be_woken_and_says_when_it_wants_to_go_on(background: Background) -> None:
    """An event starts the next round; a number that a round returns is its pause."""
    calls: list[float] = []
    wake = asyncio.Event()

    async def action() -> float:
        calls.append(0)
        return 0.001 if len(calls) in (2, 3) else 1e7

    background.every("waiting", 1e7, action, wake=wake)
    await wait_until(lambda: len(calls) == 1)
    wake.set()
    await wait_until(lambda: len(calls) == 4)


async def test_a_preparation_is_tried_until_it_succeeds(background: Background) -> None:
    """It is failure until it is done, with the reason of its last failure; then it runs no more."""
    rounds = Rounds(Unavailable("no certificate at /root.crt"), *(OSError() for _ in range(3)))
    background.once("preparation", rounds)
    assert background.failure == "preparation: not done yet"
    await wait_until(lambda: background.failure is None)
    assert rounds.done == 1


async def test_work_that_raises_is_started_again_until_it_returns(background: Background) -> None:
    """An exception does not end what is to be kept running, and is failure until it has run well for a while."""
    starts: list[int] = []
    end = asyncio.Event()

    async def run() -> None:
        starts.append(1)
        if len(starts) < 3:
            raise ValueError("at first")
        await end.wait()

    background.keep("reading", run)
    await wait_until(lambda: len(starts) == 3)
    assert background.failure == "reading: ValueError: at first"
    end.set()
    await background.stop(timeout=5)
    assert background.failure is None


async def test_a_loop_that_ended_all_the_same_is_trouble(background: Background) -> None:
    """A task that somebody else cancelled is told."""
    background.every("counting", 1e7, Rounds())
    next(task for task in asyncio.all_tasks() if task.get_name() == "counting").cancel()
    await wait_until(lambda: background.failure)
    assert background.failure == "counting: has stopped; restart this service"


async def test_stop_ends_what_a_preparation_starts_meanwhile(background: Background) -> None:
    """A preparation that is cancelled in its last moment may start loops; they end, too."""
    rounds = Rounds()

    async def prepare() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            background.every("late", 0.001, rounds)

    background.once("preparation", prepare)
    await asyncio.sleep(0)
    await background.stop()
    assert not [task for task in asyncio.all_tasks() if task.get_name() in ("late", "preparation")]
