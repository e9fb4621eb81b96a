"""Child processes that end when this process ends."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def ends_with_us(first: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
    """Return a `preexec_fn`: the child receives the signal `first` when its parent process ends, also when killed.

    Linux only (prctl(2), PR_SET_PDEATHSIG); elsewhere it does nothing. The kernel watches the *thread* that starts
    the child, so start children from the main thread.
    """
    parent = os.getpid()

    def preexec() -> None:
        if _LIBC is None:
            return
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(first), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended in between, so the kernel will not send the signal
            os._exit(1)

    return preexec


def stop(process: subprocess.Popen[bytes], timeout: float) -> None:
    """End a child that leads its own process group: SIGTERM, after `timeout` seconds SIGKILL for the whole group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    kill_group(process)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the rest of the child's process group, and reap the child."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def is_running(pid: int, mark: str) -> bool:
    """Return whether process `pid` runs and has `mark` in its command line or environment: ids are reused."""
    process = Path("/proc") / str(pid)
    try:
        return mark.encode() in (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
    except OSError:
        return False


def end_leftovers(variable: str, value: str, timeout: float) -> int:
    """End the processes that were started with `variable=value` in their environment; return their number.

    They receive SIGTERM, and SIGKILL after `timeout` seconds. On systems without /proc, none is found.
    """
    mark = f"{variable}={value}\0"
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*") if is_running(int(path.name), mark)]
    found = [pid for pid in found if pid != os.getpid()]
    _send(found, mark, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while any(is_running(pid, mark) for pid in found):
        if time.monotonic() > deadline:
            _send(found, mark, signal.SIGKILL)
        time.sleep(0.05)
    return len(found)


def _send(pids: list[int], mark: str, number: signal.Signals) -> None:
    for pid in pids:
        if is_running(pid, mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
