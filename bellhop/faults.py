"""Points at which a test may kill this process: `faults.point("outbox.confirmed")`.

Only `tests/faults/` enables them; otherwise a point is one call of an empty function. A point is enabled in a process
that is started with both variables in its environment:

    BELLHOP_FAULT          the name of the point
    BELLHOP_FAULT_SOCKET   a Unix socket; the process reports there that it has reached the point, and waits for a byte

The variables are read once, at import, so nothing outside of the process can enable a point later.
"""

import asyncio
import os
import socket


def point(name: str) -> None:
    """Do nothing; under test, block until the test continues or kills the process."""


def point_when_written(name: str) -> None:
    """Do the same as `point` after the data that was just written to a transport has been sent."""


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
        # uvloop writes at the end of a turn, pika when its socket is writable: two turns are enough for both.
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, stop, name)

    point, point_when_written = stop, stop_later


if os.environ.get("BELLHOP_FAULT") and os.environ.get("BELLHOP_FAULT_SOCKET"):
    _stopping_at(os.environ["BELLHOP_FAULT"], os.environ["BELLHOP_FAULT_SOCKET"])
