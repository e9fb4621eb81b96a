"""Named background loops of a service, supervised in one place.

A run that raises is logged and repeated after a back-off; repeated errors of one kind are logged once. A run that
exceeds its limit is cancelled, which counts as an error. A loop that has made no progress for longer than its limit, or
has stopped, is reported in `failure` and by `/readyz`. Only `stop` and `end` end a loop.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic

from prometheus_client import Counter

from bellhop.errors import Unavailable
from bellhop.observe.logs import get_logger

LIMIT_SECONDS = 30.0
MAX_BACK_OFF_SECONDS = 5.0
STOP_SECONDS = 10.0
STEADY_SECONDS = 5.0
"""A loop of `keep` counts as recovered after it has run for this long without an error."""

FAILURES = Counter("bellhop_background_failures", "Rounds of background loops that failed", ["loop"])

log = get_logger(__name__)

Round = Callable[[], Awaitable[float | None]]
Work = Callable[[], Awaitable[object]]


def spawn(work: Coroutine[object, object, None], tasks: set[asyncio.Task[None]], name: str) -> None:
    """Run `work` as a task, which is in `tasks` until it ends; an exception is logged."""

    def ended(task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("failed", task=name, exc_info=error)

    task = asyncio.create_task(work, name=name)
    tasks.add(task)
    task.add_done_callback(ended)


class Background:
    """The loops of one service, from their start until `stop`."""

    def __init__(self) -> None:
        self._loops: dict[str, _Loop] = {}

    @property
    def failure(self) -> str | None:
        """Return a text that names the loops without progress, with the reasons; None if there are none."""
        return "; ".join(failure for loop in self._loops.values() if (failure := loop.failure)) or None

    def every(
        self,
        name: str,
        seconds: float,
        action: Round,
        *,
        wake: asyncio.Event | None = None,
        limit: float = LIMIT_SECONDS,
    ) -> None:
        """Run `action` now, and then every `seconds`.

        Args:
            name: what the loop does, for the log and `/readyz`: "retention".
            seconds: the pause between two runs, unless `action` returns the number of seconds until the next one.
            action: one run; it must be safe to repeat after an error or a cancellation at any point.
            wake: an event that ends the pause; it is cleared before each run.
            limit: seconds that one run may take; then it is cancelled and counts as failed.
        """
        self._start(_Periodic(name, seconds, action, wake, limit))

    def once(self, name: str, action: Work, *, limit: float = LIMIT_SECONDS) -> None:
        """Run `action` until it succeeds; until then `failure` reports it. Arguments as those of `every`."""
        self._start(_Once(name, action, limit))

    def keep(self, name: str, run: Work) -> None:
        """Run `run`, which has no time limit, again after each exception, until it returns."""
        self._start(_Kept(name, run))

    def running(self, name: str) -> bool:
        """Return whether there is a loop `name` that has not ended."""
        loop = self._loops.get(name)
        return loop is not None and loop.task is not None and not loop.task.done()

    def _start(self, loop: "_Loop") -> None:
        if self.running(loop.name):
            raise ValueError(f"there is a loop {loop.name!r} already")
        self._loops[loop.name] = loop
        loop.task = asyncio.create_task(loop.run(), name=loop.name)

    async def end(self, name: str) -> None:
        """Cancel the loop `name`, and return when it has ended, or after `STOP_SECONDS`. Idempotent."""
        if self.running(name) and (task := self._loops[name].task) is not None:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_SECONDS)

    async def stop(self, timeout: float = 0.0) -> None:
        """Cancel all loops, and return when they have ended, or after `STOP_SECONDS`. Idempotent.

        `timeout`: seconds to wait before the cancellation, for loops of `keep` that have been asked to end.
        """
        if timeout and (ending := [loop.task for loop in self._loops.values() if loop.task]):
            await asyncio.wait(ending, timeout=timeout)
        give_up = monotonic() + STOP_SECONDS
        # Repeated: a preparation may start other loops before it ends, and a library may swallow a cancellation.
        while running := [loop.task for loop in self._loops.values() if loop.task and not loop.task.done()]:
            if monotonic() > give_up:
                log.error("loops do not end", loops=[task.get_name() for task in running])
                return
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=1)


class _Loop:
    """Base of all loops: records failures and progress, and logs their changes."""

    def __init__(self, name: str, limit: float) -> None:
        self.name = name
        self.task: asyncio.Task[None] | None = None
        self.done = False
        self._limit = limit
        self._failures = 0
        self._reason: str | None = None
        self._since: float | None = None  # start of the first run after the last success

    @property
    def failure(self) -> str | None:
        if self.task is not None and self.task.done() and not self.done:
            return f"{self.name}: has stopped; restart this service"
        if self._since is not None and monotonic() - self._since > self._limit:
            reason = f" ({self._reason})" if self._reason else ""
            return f"{self.name}: no progress for {monotonic() - self._since:.0f} s{reason}"
        return None

    async def run(self) -> None:
        raise NotImplementedError

    async def attempt(self, action: Callable[[], Awaitable[object]], timeout: float | None) -> "object | _Failed":
        """Run `action` once; return its result, or `_FAILED` after an error or a timeout, which is logged."""
        if self._since is None:
            self._since = monotonic()
        try:
            async with asyncio.timeout(timeout):
                result = await action()
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            self._fail(RuntimeError("a task that it waited for was cancelled"))
        except Exception as error:
            self._fail(error)
        else:
            self.recover()
            return result
        return _FAILED

    def recover(self) -> None:
        """Reset the failures, and log the recovery if there were any."""
        if self._reason is not None:
            log.info("recovered", loop=self.name, failures=self._failures)
        self._failures, self._reason, self._since = 0, None, None

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        FAILURES.labels(self.name).inc()
        previous, self._reason = self._reason, _sentence(error)
        # The text before the colon is the kind; numbers after it may differ from run to run.
        if previous is not None and previous.partition(":")[0] == self._reason.partition(":")[0]:
            return
        if isinstance(error, Unavailable | TimeoutError):
            log.warning("a dependency is unavailable; trying again", loop=self.name, reason=self._reason)
        else:
            log.error("failed; trying again", loop=self.name, reason=self._reason, exc_info=error)

    @property
    def back_off(self) -> float:
        # Jitter: replicas that failed together must not come back together.
        return random.uniform(0.5, 1.0) * min(MAX_BACK_OFF_SECONDS, 0.5 * 2.0 ** min(self._failures, 10))


class _Failed:
    """Type of `_FAILED`, which no action can return."""


_FAILED = _Failed()


class _Periodic(_Loop):
    def __init__(self, name: str, seconds: float, action: Round, wake: asyncio.Event | None, limit: float) -> None:
        super().__init__(name, limit)
        self._seconds = seconds
        self._action = action
        self._wake = wake

    async def run(self) -> None:
        while True:
            if self._wake is not None:
                self._wake.clear()
            result = await self.attempt(self._action, self._limit)
            if result is _FAILED:
                await asyncio.sleep(self.back_off)  # `wake` does not shorten the back-off: requests may set it often
            else:
                await self._pause(result if isinstance(result, int | float) else self._seconds)

    async def _pause(self, seconds: float) -> None:
        if self._wake is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return


class _Once(_Loop):
    def __init__(self, name: str, action: Work, limit: float) -> None:
        super().__init__(name, limit)
        self._action = action

    @property
    def failure(self) -> str | None:
        return None if self.done else f"{self.name}: {self._reason or 'not done yet'}"

    async def run(self) -> None:
        while not self.done:
            self.done = await self.attempt(self._action, self._limit) is not _FAILED
            if not self.done:
                await asyncio.sleep(self.back_off)


class _Kept(_Loop):
    def __init__(self, name: str, run: Work) -> None:
        super().__init__(name, LIMIT_SECONDS)
        self._work = run

    @property
    def failure(self) -> str | None:
        if self.task is not None and self.task.done():
            return super().failure
        return None if self._reason is None else f"{self.name}: {self._reason}"

    async def run(self) -> None:
        while not self.done:
            steady = asyncio.get_running_loop().call_later(STEADY_SECONDS, self.recover)
            self.done = await self.attempt(self._work, None) is not _FAILED
            steady.cancel()
            if not self.done:
                await asyncio.sleep(self.back_off)


def _sentence(error: Exception) -> str:
    if isinstance(error, Unavailable):
        return str(error)
    if isinstance(error, TimeoutError) and not str(error):
        return "a run did not end in time"
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no text'])[0]}"
