"""Points at which a test may stop this process for good: `faults.point("relay.confirmed")`.

`tests/faults/` kills services exactly there. Off, which is always outside of those tests, a point is one call of an
empty function. It is on only in a process that was started with both variables in its environment:

    BELLHOP_FAULT          the name of the point
    BELLHOP_FAULT_SOCKET   a Unix socket; the process says there that it has come to the point, and waits for one byte

Nothing from outside of the process can reach it: the variables are read once, at import.
"""

import asyncio
import os
import socket


def point(name: str) -> None:
    """Do nothing; under test, wait here until told to go on, or to die."""


def point_when_written(name: str) -> None:
    """Do the same as `point` as soon as what was just written to a transport has left the process."""


def _stopping_at(armed: str, path: str) -> None:
    global point, point_when_written
    controller = socket.socket(socket.AF_UNIX)
    controller.connect(path)

    def stop(name: str) -> None:
        if name != armed:
            return
        controller.sendall(b"%d\n" % os.getpid())
        controller.recv(1)

    def stop_later(name: str) -> None:
        # uvloop writes at the end of a turn, pika as soon as its socket takes something: two turns serve both.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, stop, name)

    point, point_when_written = stop, stop_later


if os.environ.get("BELLHOP_FAULT") and os.environ.get("BELLHOP_FAULT_SOCKET"):
    _stopping_at(os.environ["BELLHOP_FAULT"], os.environ["BELLHOP_FAULT_SOCKET"])
