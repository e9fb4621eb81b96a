"""Programs are kept running, and none outlives who started it."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellhop.cli.errors import CannotRun
from bellhop.local import processes
from bellhop.local.supervisor import Output, Program, Supervisor
from tests.support import wait_until

COUNTS = "import pathlib, sys, time; f = pathlib.Path(sys.argv[1]); f.open('a').write('x')\n"


def program(name: str, code: str, *arguments: str) -> Program:
    """Return a program of a few lines of Python."""
    return Program(name, [sys.executable, "-c", code, *arguments], dict(os.environ), "")


async def test_a_program_that_ends_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line says so."""
    file = tmp_path / "starts"
    supervisor = Supervisor(Output(["mailer"]))
    supervisor.all_up = True
    await supervisor.start(program("mailer", COUNTS + "sys.exit(7)", str(file)))
    await wait_until(lambda: file.exists() and len(file.read_text()) >= 2, 10, "it ran a second time")
    await supervisor.stop()
    assert "mailer ended with exit code 7; it is started again in 1 s" in capsys.readouterr().out


async def test_a_program_that_never_comes_up_ends_the_start(tmp_path: Path) -> None:
    """Three times during start-up is enough to know."""
    supervisor = Supervisor(Output(["mailer"]))
    await supervisor.start(program("mailer", "raise SystemExit('wrong setting')"))
    with pytest.raises(CannotRun, match="mailer does not start: it ended with exit code 1"):
        await asyncio.wait_for(supervisor.failed, 20)
    await supervisor.stop()


async def test_stop_waits_for_work_in_hand(tmp_path: Path) -> None:
    """SIGTERM comes first, and what a program does then is not cut short."""
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_): time.sleep(0.5); pathlib.Path(sys.argv[1]).write_text('done'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)"
    )
    output = Output(["mailer"])
    lines: list[str] = []
    output.line = lambda name, text: lines.append(text)  # type: ignore[method-assign]
    supervisor = Supervisor(output)
    await supervisor.start(program("mailer", code, str(tmp_path / "file")))
    await wait_until(lambda: "ready" in lines, 10, "it is ready")
    await supervisor.stop()
    assert (tmp_path / "file").read_text() == "done"


async def test_a_line_without_end_does_not_stop_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """What is too long is left out; what follows is shown."""
    supervisor = Supervisor(Output(["mailer"]))
    await supervisor.start(
        program("mailer", "print('x' * 3_000_000); print('after', flush=True); import time; time.sleep(60)")
    )
    said: list[str] = []

    def after() -> bool:
        said.append(capsys.readouterr().out)
        return "mailer | after" in "".join(said)

    await wait_until(after, 10, "the line after it is shown")
    await supervisor.stop()


def test_a_child_dies_with_its_parent_even_if_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL leaves no orphan."""
    code = (
        "import subprocess, sys, time\n"
        "from bellhop.local.processes import ends_with_us\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], preexec_fn=ends_with_us())\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        descriptor = os.pidfd_open(child)
        parent.send_signal(signal.SIGKILL)
        ended = select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)
    assert ended


def test_leftovers_are_found_by_their_mark_and_nothing_else_is_touched(tmp_path: Path) -> None:
    """A process with another value of the same variable lives on."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours = subprocess.Popen(sleep, env={**os.environ, "BELLHOP_TEST_MARK": str(tmp_path)})
    other = subprocess.Popen(sleep, env={**os.environ, "BELLHOP_TEST_MARK": f"{tmp_path}/other"})
    found = processes.end_leftovers("BELLHOP_TEST_MARK", str(tmp_path), timeout=5)
    assert (found, ours.wait(5), other.poll()) == (1, -signal.SIGTERM, None)
    other.kill()
    other.wait()
