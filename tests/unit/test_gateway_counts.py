"""When a number is counted, and when the last one is told."""

import asyncio

import pytest

from bellhop.sql.database import DatabaseUnavailable
from services.gateway.tasks import counts as tally
from services.gateway.tasks.counts import CachedCount
from tests.support import wait_until


class Counting:
    """Counts its calls; each takes until it is allowed to end."""

    def __init__(self) -> None:
        self.calls = 0
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.calls += 1
        call = self.calls
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return call


async def test_a_quick_count_is_made_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small system never shows an old number."""
    monkeypatch.setattr(tally, "QUICK_SECONDS", 60)
    counting = Counting()
    counting.may_end.set()
    number = CachedCount(counting)

    assert [await number.get() for _ in range(3)] == [1, 2, 3]


async def test_a_slow_count_is_told_until_it_is_time_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A count is not repeated for every request."""
    monkeypatch.setattr(tally, "QUICK_SECONDS", 0)
    monkeypatch.setattr(tally, "REST_FACTOR", 1e9)
    counting = Counting()
    counting.may_end.set()
    number = CachedCount(counting)

    assert [await number.get() for _ in range(3)] == [1, 1, 1]


async def test_who_has_an_older_number_does_not_wait_for_a_slow_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is counted again the last number is told, by one count for all that ask."""
    monkeypatch.setattr(tally, "REST_FACTOR", 0)
    monkeypatch.setattr(tally, "QUICK_SECONDS", 0)
    counting = Counting()
    counting.may_end.set()
    number = CachedCount(counting)
    await number.get()
    counting.may_end.clear()

    assert await asyncio.gather(number.get(), number.get()) == [1, 1]

    assert counting.calls == 2
    counting.may_end.set()


async def test_a_count_that_fails_is_made_again() -> None:
    """Those who wait for it are told why; the next one counts anew."""
    counting = Counting()
    counting.may_end.set()
    counting.error = ValueError("no")
    number = CachedCount(counting)
    with pytest.raises(ValueError, match="no"):
        await number.get()

    counting.error = None

    assert await number.get() == 2


async def test_a_count_that_fails_with_nobody_waiting_is_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old number is shown, and the log says that it is old."""
    monkeypatch.setattr(tally, "REST_FACTOR", 0)
    monkeypatch.setattr(tally, "QUICK_SECONDS", 0)
    counting = Counting()
    counting.may_end.set()
    number = CachedCount(counting)
    await number.get()
    counting.may_end.clear()
    counting.error = DatabaseUnavailable("gone")

    assert await number.get() == 1

    counting.may_end.set()
    await wait_until(lambda: "gone" in capsys.readouterr().out, 5, "it is logged")
