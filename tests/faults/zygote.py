"""Starts services faster than Python can: everything is imported once, and each service is a fork of that.

    python -m tests.faults.zygote

reads one JSON line for each process to start, `{"service", "environment", "log", "changes"}`, and answers with its
process id; when one ends, it writes `{"ended": pid, "status": …}`. What a fork runs is `python -m services.<service>`,
and `kill -9` finds an ordinary process of its own.

`changes` names functions of `tests.faults.changes` that are applied first: times made shorter, and mutants.
"""

import asyncio
import faulthandler
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from typing import Any

from bellhop import catalog


def main() -> None:
    """Serve until the other side is gone; the services die with it."""
    for name in catalog.NAMES:
        importlib.import_module(f"services.{name}.app")
    changes = importlib.import_module("tests.faults.changes")
    orders = socket.socket(fileno=int(sys.argv[1]))
    running: set[int] = set()
    orders.settimeout(0.05)
    buffer = b""
    orders.sendall(b'{"ready": true}\n')
    while True:
        try:
            data = orders.recv(65536)
        except TimeoutError:
            data = None
        if data == b"":
            break
        buffer += data or b""
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become(order, changes)
            running.add(pid)
            orders.sendall(json.dumps({"started": pid}).encode() + b"\n")
        for pid in list(running):
            gone, status = os.waitpid(pid, os.WNOHANG)
            if gone:
                running.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                orders.sendall(json.dumps({"ended": pid, "status": code}).encode() + b"\n")
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _become(order: dict[str, Any], changes: Any) -> None:
    code = 1
    try:
        os.setsid()
        os.closerange(3, 256)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(order["environment"])
        signal.signal(signal.SIGUSR2, _tell)
        importlib.reload(importlib.import_module("bellhop.faults"))
        for name in order["changes"]:
            getattr(changes, name)()
        sys.argv = [f"services.{order['service']}"]
        runpy.run_module(f"services.{order['service']}", run_name="__main__", alter_sys=False)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def _tell(*_: Any) -> None:
    """On SIGUSR2, write down what every task waits for: a service that does not end says why."""
    faulthandler.dump_traceback()
    for task in asyncio.all_tasks(asyncio.get_running_loop()):
        task.print_stack(file=sys.stderr)


if __name__ == "__main__":
    main()
