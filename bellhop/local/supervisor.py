"""Supervise programs in the foreground: start them, show their output, restart them, and stop them in order."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass, field

from bellhop.cli.errors import CannotRun
from bellhop.local import processes

COLOURS = ("36", "33", "35", "32", "34", "31")
LONGEST_LINE_BYTES = 1 << 20
STOP_SECONDS = 20.0
"""Seconds between SIGTERM and SIGKILL: more than the services' `shutdown_seconds`."""
LONGEST_PAUSE_SECONDS = 5.0
STEADY_SECONDS = 60.0
"""A program that ran this long restarts after the shortest pause."""
FALSE_STARTS = 3
"""A program that ended this often during the start-up ends the start-up."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to run."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(repr=False)
    ready_url: str
    """URL that answers 200 when the program is ready."""


class Output:
    """Lines on standard output, each with the name of its program."""

    def __init__(self, names: list[str]) -> None:
        """`names`: all programs, for the width and the colours."""
        self._width = max(map(len, names), default=0)
        coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._colours = dict(zip(names, (COLOURS * len(names)) if coloured else (), strict=False))

    def line(self, name: str, text: str) -> None:
        """Write one line; if the reader of standard output has closed it, lines are dropped."""
        label = f"{name:<{self._width}} |"
        if colour := self._colours.get(name):
            label = f"\x1b[{colour}m{label}\x1b[0m"
        try:
            print(label, text, flush=True)
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # until this process ends


class Supervisor:
    """Runs programs. One that ends is restarted after a pause, which grows from 1 to 5 seconds."""

    def __init__(self, output: Output) -> None:
        """Nothing runs yet."""
        self.all_up = False
        """Set it when all programs are ready: until then a program that ends three times ends the start-up."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Receives the `CannotRun` of a program that does not start."""
        self._output = output
        self._keepers: list[asyncio.Task[None]] = []
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()

    async def start(self, program: Program) -> None:
        """Start a program and keep it running."""
        process = await self._spawn(program)
        self._keepers.append(asyncio.create_task(self._keep(program, process), name=f"keep {program.name}"))

    async def stop(self) -> None:
        """Send SIGTERM to all programs, wait `STOP_SECONDS`, and kill those that have not ended. Idempotent."""
        self._stopping.set()
        self._signal(signal.SIGTERM)
        if self._keepers:
            _, slow = await asyncio.wait(self._keepers, timeout=STOP_SECONDS)
            if slow:
                names = " and ".join(sorted(self._running))
                self._output.line(
                    "bellhop", f"{names} did not stop within {STOP_SECONDS:.0f} seconds and is ended by force"
                )
                self.kill()
                await asyncio.wait(slow, timeout=5)
        self._keepers.clear()

    def kill(self) -> None:
        """Kill all programs immediately."""
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running.values():
            try:
                os.killpg(process.pid, number)  # each leads its own process group
            except ProcessLookupError:
                continue

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *program.command,
            env=program.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LONGEST_LINE_BYTES,
            start_new_session=True,  # so that Ctrl-C reaches only this process, which stops them in order
            preexec_fn=processes.ends_with_us(),
        )
        self._running[program.name] = process
        return process

    async def _keep(self, program: Program, process: asyncio.subprocess.Process) -> None:
        pause = 1.0
        false_starts = 0
        while True:
            started = time.monotonic()
            await self._show(program.name, process)
            code = await process.wait()
            del self._running[program.name]
            if self._stopping.is_set():
                return
            false_starts = 0 if self.all_up else false_starts + 1
            if false_starts >= FALSE_STARTS:
                if not self.failed.done():
                    self.failed.set_exception(
                        CannotRun(f"{program.name} does not start: it {_ending(code)}. See its lines above.")
                    )
                return
            if time.monotonic() - started > STEADY_SECONDS:
                pause = 1.0
            self._output.line("bellhop", f"{program.name} {_ending(code)}; it is started again in {pause:.0f} s")
            await self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if self._stopping.is_set():
                return
            process = await self._spawn(program)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _show(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                continue  # a line beyond asyncio's limit; that part is dropped
            if not line:
                return
            self._output.line(name, line.decode(errors="replace").rstrip())


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
