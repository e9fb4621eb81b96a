"""Mails accepted over HTTP, beside a FastAPI route that does nothing and beside Flask with Celery; scores likewise.

    python -m bench.accept                      # 6 s for each
    python -m bench.accept --mailer             # and once more while a mailer sends what was accepted

Ours and the route that does nothing are one process each. Flask and Celery 5.7 are served by gunicorn with threads, by
one process and then by two, as many as there are cores here; `delay` waits for the broker's confirm. All take turns, so
that whatever else the machine does troubles them alike, and after each turn our outbox must be empty again, so that no
turn does another's work. Load comes from another process over 64 keep-alive connections.

Our acceptance is durable and tracked: every 202 follows a commit with `synchronous=FULL`, and the outbox publisher uses
confirms meanwhile.
"""

import argparse
import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from bellhop.local import processes
from bellhop.local.ports import free_ports
from bench import load, sink, stage

ROUNDS = 3
CONNECTIONS = 64
THREADS = 16
PEER = Path(__file__).parent / "accept_peers"
PACKAGES = ("celery==5.7.*", "flask==3.*", "gunicorn")
MAIL = orjson.dumps({"to": "ada@example.com", "subject": "Welcome", "text": "Hello Ada, welcome aboard. " * 8})
SCORES = orjson.dumps([{"board": "b", "player": f"player-{n}", "score": n} for n in range(1000)])


@contextlib.contextmanager
def flask_celery(place: stage.Stage, programs: Path, workers: int) -> Iterator[int]:
    """Run the peer with so many processes; give its port."""
    port = free_ports(1)[0]
    options = ["--worker-class", "gthread", "--workers", str(workers), "--threads", str(THREADS)]
    running = subprocess.Popen(
        [programs / "gunicorn", *options, "--bind", f"127.0.0.1:{port}", "--log-level", "error", "flask_celery:app"],
        cwd=PEER, env=os.environ | {"BENCH_AMQP_URL": place.amqp_url}, preexec_fn=processes.ends_with_us(),
    )  # fmt: skip
    try:
        stage.wait_ready(running, f"http://127.0.0.1:{port}/readyz", "gunicorn")
        yield port
    finally:
        running.terminate()
        running.wait(20)


def measure(place: stage.Stage, gateway: stage.Gateway, seconds: float, *, peer: bool) -> dict[str, load.Result]:
    """Let all accept mails in turns."""
    json = {"content_type": "application/json"}
    nothing = free_ports(1)[0]
    with contextlib.ExitStack() as stack:
        stack.enter_context(stage.process("-m", "bench.nothing", port=nothing))
        calls = {
            "do nothing": (nothing, load.request("POST", "/nothing", MAIL, **json)),
            "accept a mail": (gateway.port, load.request("POST", "/v1/mail", MAIL, **gateway.headers())),
        }
        if peer:
            programs = stage.environment(place.folder, *PACKAGES)
            for workers in (1, 2):
                port = stack.enter_context(flask_celery(place, programs, workers))
                name = f"Flask and Celery, {workers} process{'es' if workers > 1 else ''}"
                calls[name] = (port, load.request("POST", "/v1/mail", MAIL, **json))
        found = {name: load.Result() for name in calls}
        for _ in range(ROUNDS):
            for name, (port, request) in calls.items():
                load.run(port, request, connections=CONNECTIONS, seconds=seconds / ROUNDS, into=found[name])
                drain(place)
    return found


def drain(place: stage.Stage) -> None:
    """Wait until all that was accepted is published; say so where that took long, for then the rate does not last."""
    began, left = time.monotonic(), stage.outbox(place)
    while stage.outbox(place):
        time.sleep(0.01)
    if (took := time.monotonic() - began) > 0.5:
        print(f"{left:,} mails were still to be published at the end of a turn, which took {took:.1f} s")


def show(name: str, result: load.Result, each: int = 1) -> None:
    """Print one line."""
    p50, p99 = result.percentile(0.5), result.percentile(0.99)
    print(f"{name:32}{result.rate * each:10,.0f}/s  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  {result.statuses}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each figure")
    parser.add_argument("--mailer", action="store_true", help="measure again while a mailer is at work beside")
    parser.add_argument("--no-peer", action="store_true", help="without Flask and Celery")
    asked = parser.parse_args()
    print(stage.heading())
    with stage.broker() as place, stage.gateway(place) as gateway:
        mail = load.request("POST", "/v1/mail", MAIL, **gateway.headers())
        scores = load.request("POST", "/v1/scores", SCORES, **gateway.headers())
        found = measure(place, gateway, asked.seconds, peer=not asked.no_peer)
        for name, result in found.items():
            show(name, result)
        nothing, ours, *theirs = found.values()
        print(f"  ratio to doing nothing        {ours.rate / nothing.rate:10.2f}      (wanted 0.5)")
        for workers, peer in enumerate(theirs, 1):
            wanted = "  (wanted 4)" if workers == 1 else ""
            print(f"  ratio to Flask and Celery, {workers}  {ours.rate / peer.rate:10.2f}    {wanted}")
        show("accept scores", load.run(gateway.port, scores, connections=8, seconds=asked.seconds), each=1000)
        if asked.mailer:
            smtp_port = free_ports(1)[0]
            with sink.smtp_sink(smtp_port), stage.mailer(place, smtp_port):
                beside = load.run(gateway.port, mail, connections=CONNECTIONS, seconds=asked.seconds)
            show("accept a mail, a mailer beside", beside)


if __name__ == "__main__":
    main()
