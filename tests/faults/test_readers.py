"""Many readers of the stream: all of them come back, none misses anything, and one that does not read harms nobody."""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bellhop.web import tokens
from tests.faults import netns, pace
from tests.faults.driver import CHANNEL, Driver
from tests.faults.oracle import Verdict
from tests.faults.system import Rig, System, system
from tests.support import wait_until
from tests.support.follower import Follower

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MANY = {"max_subscribers_per_subject": 10_000}


@asynccontextmanager
async def audience(whole: System, count: int, pause: float | None = 0.2) -> AsyncIterator[list[Follower]]:
    """So many browsers; `pause`: see `Follower`."""
    # Each is somebody else: what one subject may ask for in a second is limited.
    key, port = whole.token_key, whole["notifier"].port
    some = [tokens.mint(key, f"reader{number}", 7200, "stream", channels=[CHANNEL]) for number in range(count)]
    followers = [Follower(port, token, pause=pause) for token in some]
    tasks = [asyncio.create_task(follower.run()) for follower in followers]
    try:
        await wait_until(
            lambda: all(follower.live.is_set() for follower in followers), 120, f"{count} followers are live"
        )
        yield followers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


@asynccontextmanager
async def talking(driver: Driver, pause: float) -> AsyncIterator[None]:
    """Raise a notification every `pause` seconds while the block runs."""
    stop = asyncio.Event()

    async def talk() -> None:
        while not stop.is_set():
            await driver.notification()
            await asyncio.sleep(pause)

    task = asyncio.create_task(talk())
    try:
        yield
    finally:
        stop.set()
        await task


def _balance(driver: Driver, followers: list[Follower]) -> Verdict:
    """Every follower is a sink of its own."""
    accepted, attempted = driver.books.accepted["notification"], driver.books.attempted["notification"]
    missed = {f"{number}:{title}" for number, each in enumerate(followers) for title in accepted - set(each.seen)}
    strange = {title for each in followers for title in set(each.seen) - attempted}
    twice = {f"{number}:{t}" for number, each in enumerate(followers) for t, count in each.seen.items() if count > 1}
    return Verdict(len(accepted) * len(followers), missed, strange, twice)


async def _all_see_the_next(driver: Driver, followers: list[Follower]) -> float:
    """Publish one more, and return how many seconds it takes until everybody was shown it."""
    began = time.monotonic()
    before = set(driver.books.accepted["notification"])
    assert await driver.notification()
    fresh = driver.books.accepted["notification"] - before
    await wait_until(lambda: all(fresh <= each.seen.keys() for each in followers), 90, "all are back", interval=0.05)
    return time.monotonic() - began


async def test_notifier_killed_under_many_readers(rig: Rig, tmp_path: Path, record: Any) -> None:
    """kill -9 under 300 readers: everybody resumes by its last id, without a gap and without a copy."""
    runs = pace.times(5, 2)
    async with system(rig, tmp_path, services=("gateway", "notifier"), settings={"notifier": MANY}) as whole:
        driver, longest = Driver(whole), 0.0
        async with audience(whole, 300) as followers:
            async with talking(driver, 0.05):
                for _ in range(runs):
                    await asyncio.sleep(2)
                    await whole.restart("notifier")
                    longest = max(longest, await _all_see_the_next(driver, followers))
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: not _balance(driver, followers).lost, 20)
            verdict = _balance(driver, followers)
            record("kill -9 of the notifier under 300 readers", verdict, runs=runs, recovery=longest)
            assert verdict.clean, verdict
            assert sum(each.gaps for each in followers) == 0


async def test_a_thousand_come_back_at_once(rig: Rig, tmp_path: Path, record: Any) -> None:
    """A restart under 1,000 readers that all return at the same moment: all live again within 30 s."""
    async with system(rig, tmp_path, services=("gateway", "notifier"), settings={"notifier": MANY}) as whole:
        driver = Driver(whole)
        async with audience(whole, 1000) as followers:
            for _ in range(20):
                await driver.notification()
            for each in followers:
                each.pause = 0.05
            assert await whole["notifier"].terminate() == 0
            whole["notifier"].start()
            recovery = await _all_see_the_next(driver, followers)
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: not _balance(driver, followers).lost, 20)
            verdict = _balance(driver, followers)
            record("1,000 readers reconnect together", verdict, recovery=recovery)
            assert verdict.clean, verdict
            assert sum(each.gaps for each in followers) == 0


@pytest.mark.timeout(600)
async def test_event_sources_come_back_after_restarts(rig: Rig, tmp_path: Path, record: Any) -> None:
    """SIGTERM, then SIGKILL, under 1,000 readers that wait as long as `retry:` says, while events are published."""
    async with system(rig, tmp_path, services=("gateway", "notifier"), settings={"notifier": MANY}) as whole:
        driver, notifier, seconds = Driver(whole), whole["notifier"], dict[str, float]()
        async with audience(whole, 1000, pause=None) as followers:
            async with talking(driver, 0.25):
                began = time.monotonic()
                assert await notifier.terminate() == 0
                notifier.start()
                await _all_see_the_next(driver, followers)
                seconds["SIGTERM"] = time.monotonic() - began
                began = time.monotonic()
                await whole.restart("notifier")
                await _all_see_the_next(driver, followers)
                seconds["SIGKILL"] = time.monotonic() - began
            with contextlib.suppress(AssertionError):
                await wait_until(lambda: not _balance(driver, followers).lost, 60)
            verdict = _balance(driver, followers)
            beside = ", ".join(f"all back after {name}: {each:.1f} s" for name, each in seconds.items())
            fault = "notifier restarted (SIGTERM, SIGKILL) under 1,000 readers that obey `retry`"
            record(fault, verdict, runs=2, recovery=max(seconds.values()), beside=beside)
            assert verdict.clean, verdict
            assert sum(each.gaps for each in followers) == 0
            assert [line for each in followers for line in each.refusals] == []


async def test_a_reader_that_does_not_read(rig: Rig, tmp_path: Path, record: Any) -> None:
    """Ten readers that never read are cut off; the notifier's memory stays, and others get everything."""
    async with system(rig, tmp_path, services=("gateway", "notifier"), settings={"notifier": MANY}) as whole:
        driver, notifier = Driver(whole), whole["notifier"]
        token = tokens.mint(whole.token_key, "sleeper", 7200, "stream", channels=[CHANNEL])
        sleepers = [_sleeper(notifier.port, token) for _ in range(10)]
        try:
            async with audience(whole, 20) as followers:
                before = _memory(notifier.pid)
                began = time.monotonic()
                for number in range(1200):
                    name = f"x{number}"
                    driver.books.attempted["notification"].add(name)
                    body = {"channels": [CHANNEL], "title": name, "body": "b" * 16_000}
                    answer = await driver.post("/v1/notifications", body)
                    assert answer is not None
                    assert answer.status_code == 202
                    driver.books.accepted["notification"].add(name)
                await wait_until(lambda: not _balance(driver, followers).lost, 30, "all others have everything")

                async def cut() -> bool:
                    return _subscribers((await whole.http.get(f"{notifier.url}/metrics")).text) == len(followers)

                await wait_until(cut, 45, "the ten are cut off")
                seconds = time.monotonic() - began
                grown = _memory(notifier.pid) - before
                verdict = _balance(driver, followers)
                record("10 readers that never read", verdict, recovery=seconds, beside=f"memory + {grown // 2**20} MB")
                assert verdict.clean, verdict
                assert grown < 120 * 2**20  # the window keeps up to 64 MB of events, and ten readers had 1 MB each
        finally:
            for each in sleepers:
                each.close()


def _subscribers(metrics: str) -> int:
    return next(round(float(line.split()[1])) for line in metrics.splitlines()
                if "subscribers" in line and not line.startswith("#"))  # fmt: skip


def _sleeper(port: int, token: str) -> socket.socket:
    sleeper = socket.socket()
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sleeper.connect(("127.0.0.1", port))
    sleeper.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return sleeper


def _memory(pid: int) -> int:
    fields = (Path("/proc") / str(pid) / "statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.skipif(not netns.available(), reason="needs root, network namespaces and iptables")
async def test_readers_whose_cable_is_cut(rig: Rig, tmp_path: Path, record: Any) -> None:
    """200 half-open connections: noticed by what they do not acknowledge, and let go within 90 s."""
    async with netns.cable() as cable:
        settings = {"notifier": MANY | {"host": cable.near, "ping_seconds": 5}}
        async with system(rig, tmp_path, services=("gateway",)) as whole:  # noqa: SIM117
            # Its readiness is asked at its own address, so it is started by hand.
            async with system(rig, tmp_path / "far", services=("notifier",), settings=settings, start=False) as far:
                notifier = far["notifier"]
                notifier.start()
                url = f"http://{cable.near}:{notifier.port}"

                async def subscribers() -> int:
                    try:
                        return _subscribers((await whole.http.get(f"{url}/metrics")).text)
                    except httpx.TransportError:
                        return -1

                async def up() -> bool:
                    return await subscribers() == 0

                await wait_until(up, 30, "the notifier is up")
                token = tokens.mint(far.token_key, "far", 7200, "stream", channels=[CHANNEL])
                readers = await asyncio.create_subprocess_exec(
                    "ip", "netns", "exec", cable.name, sys.executable, "-c", _READERS, cable.near,
                    str(notifier.port), token,
                )  # fmt: skip
                try:

                    async def all_there() -> bool:
                        return await subscribers() == 200

                    await wait_until(all_there, 30, "200 readers")
                    cable.lose(1)
                    began = time.monotonic()
                    await wait_until(up, 100, "they are let go", interval=0.5)
                    seconds = time.monotonic() - began
                finally:
                    readers.kill()
                    await readers.wait()
                record("200 readers whose cable is cut", Verdict(200, set(), set(), set()), recovery=seconds)
                assert seconds < 90


_READERS = """
import asyncio, sys
async def main(host, port, token):
    async def one():
        r, w = await asyncio.open_connection(host, port)
        w.write(f"GET /v1/stream HTTP/1.1\\r\\nHost: a\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n".encode())
        while await r.read(65536):
            pass
    await asyncio.gather(*(one() for _ in range(200)))
asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
"""
