"""How fast one event reaches many browsers: the notifier beside Nchan (nginx), same client, same sockets, one run.

    python bench/fanout.py                      # 1,000 subscribers; Nchan too, where it is installed
    python bench/fanout.py --subscribers 5000 --idle 10000

The client is a process of its own that reads sockets and counts bytes. Printed are

    deliveries/s    events x subscribers / (first publish .. last byte at the client); one event per turn of the loop,
                    and in bursts of 50 as they come from a busy stream
    p50, p99        from publishing to the bytes at each subscriber, 10 events/s
    KB              resident memory of the server per idle subscriber (without the kernel's share)
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

CHANNEL = "bench"
BODY = {"title": "Your order is on its way", "body": "x" * 60, "data": {"order": 4711}}
NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")


# --- the notifier: the real app in a real uvicorn, fed by commands over a pipe instead of RabbitMQ ---


def run_notifier(pipe: Connection, port: int) -> None:
    """Serve until the pipe closes."""
    import uvicorn

    from bellhop.background import Background
    from bellhop.web.protocol import LimitedProtocol
    from services.notifier.app import build
    from services.notifier.settings import NotifierSettings

    settings = NotifierSettings(
        amqp_url="amqp://unused/",
        token_key="k" * 40,
        port=port,
        max_subscribers=100_000,
        max_subscribers_per_subject=100_000,
    )
    app = build(settings)
    config = uvicorn.Config(
        app, port=port, loop="uvloop", http=LimitedProtocol, lifespan="off", access_log=False, log_config=None
    )

    async def main() -> None:
        hub = app.state.live.hub
        hub.expect(-1)
        hub.look()
        feeding = asyncio.create_task(feed(hub, pipe))
        Background().every("pinging", 1.0, hub.tick)
        await asyncio.wait(
            {asyncio.create_task(uvicorn.Server(config).serve()), feeding}, return_when="FIRST_COMPLETED"
        )
        os._exit(0)

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(main())


async def feed(hub, pipe: Connection) -> None:
    """Do what the pipe says: ("publish", count, burst) or ("slow", count, events per second)."""
    from bellhop.amqp.message import Delivery
    from bellhop.contracts.envelope import Envelope
    from services.notifier.events import read_event

    offset = 0

    def publish() -> None:
        nonlocal offset
        body = {"channels": [CHANNEL], **BODY, "data": {"sent": time.monotonic_ns()}}
        envelope = Envelope(type="notification.raised", source="/bench", id=str(offset))
        delivery = Delivery(json.dumps(body).encode(), envelope, 1, {}, "", "", "", False, offset)
        hub.publish(read_event(delivery, {}))
        offset += 1

    loop = asyncio.get_running_loop()
    while True:
        try:
            what, count, number = await loop.run_in_executor(None, pipe.recv)
        except EOFError:
            return
        if what == "publish":
            for i in range(1, count + 1):
                publish()
                if i % number == 0:
                    await asyncio.sleep(0)
        else:
            for _ in range(count):
                publish()
                await asyncio.sleep(1 / number)


# --- Nchan ---

NGINX = """
load_module {module};
worker_processes 1;
daemon off;
user root;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 40000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000;
  server {{
    listen 127.0.0.1:{port};
    location /pub {{ nchan_publisher; nchan_channel_id c; nchan_message_buffer_length 1000; }}
    location / {{ nchan_subscriber eventsource; nchan_channel_id c; nchan_subscriber_first_message newest; }}
  }}
}}
"""


class Nchan:
    """One nginx worker; messages go in over one keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.folder = tempfile.mkdtemp(prefix="bench-nchan-")
        path = Path(self.folder) / "nginx.conf"
        path.write_text(NGINX.format(module=NCHAN_MODULE, folder=self.folder, port=port))
        self.process = subprocess.Popen(["nginx", "-c", str(path), "-p", self.folder], stderr=subprocess.DEVNULL)
        wait_for(port)
        self.socket = socket.create_connection(("127.0.0.1", port))

    def send(self, command: tuple[str, int, int]) -> None:
        """Publish like `feed`."""
        what, count, number = command
        burst = number if what == "publish" else 1
        for _ in range(count // burst):
            self.socket.sendall(b"".join(self.request() for _ in range(burst)))
            answers = 0
            while answers < burst:
                answers += self.socket.recv(65536).count(b"HTTP/1.1 20")
            if what == "slow":
                time.sleep(1 / number)

    def request(self) -> bytes:
        text = json.dumps(
            {
                "channel": CHANNEL,
                "id": "12345678:123456",
                "type": "notification.raised",
                "time": "2026-01-01T00:00:00.000000Z",
                "event_id": "1",
                "source": "/bench",
                "subject": None,
                "data": {**BODY, "key": None, "data": {"sent": time.monotonic_ns()}},
            },
            separators=(",", ":"),
        ).encode()
        return b"POST /pub HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)

    def worker(self) -> int:
        """Return the process that holds the connections."""
        return int(subprocess.check_output(["pgrep", "-P", str(self.process.pid)]).split()[0])

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


# --- the client ---


def run_client(pipe: Connection, port: int, path: str, subscribers: int) -> None:
    """Connect; then for each (bytes per subscriber) expected: report when all have come, and the latencies seen."""
    poller = select.epoll()
    sockets: dict[int, socket.socket] = {}
    for _ in range(subscribers):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
            "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n"
            "Accept-Language: en-GB,en;q=0.5\r\nAccept-Encoding: gzip, deflate\r\n\r\n".encode()
        )
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
        poller.register(connection, select.EPOLLIN)
    read_until_quiet(poller, sockets)
    pipe.send("connected")
    while (command := pipe.recv()) is not None:
        events, timed = command
        pipe.send("go")
        pipe.send(count(poller, sockets, events * subscribers, timed))


def read_until_quiet(poller: select.epoll, sockets: dict[int, socket.socket]) -> None:
    while ready := poller.poll(1.0):
        for number, _ in ready:
            sockets[number].recv(65536)


def count(
    poller: select.epoll, sockets: dict[int, socket.socket], expected: int, timed: bool
) -> tuple[int, float, list[float]]:
    """Count events by the word that only their data has; return (seen, time of the last, latencies in ms)."""
    seen, last, latencies = 0, time.monotonic(), []
    while seen < expected:
        ready = poller.poll(3.0)
        if not ready:
            break
        for number, _ in ready:
            data = sockets[number].recv(262144)
            if not data:
                poller.unregister(number)
                continue
            seen += data.count(b'"sent":')
            if timed:
                now = time.monotonic_ns()
                latencies += [(now - int(part[:30].partition(b"}")[0])) / 1e6 for part in data.split(b'"sent":')[1:]]
        last = time.monotonic()
    return seen, last, latencies


# --- the run ---


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory(process: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def notifier() -> Iterator[tuple[object, int, str, int]]:
    from bellhop.web import tokens

    port = free_port()
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=run_notifier, args=(theirs, port), daemon=True)
    process.start()
    theirs.close()
    wait_for(port)
    token = tokens.mint("k" * 40, "bench", 3600, "stream", channels=[CHANNEL])
    yield ours, port, f"/v1/stream?token={token}", process.pid or 0
    ours.close()
    process.join(5)
    process.kill()


@contextlib.contextmanager
def nchan() -> Iterator[tuple[object, int, str, int]]:
    port = free_port()
    server = Nchan(port)
    yield server, port, "/sub", server.worker()
    server.close()


def measure(name: str, server, subscribers: int, events: int, idle: int) -> None:
    """Print one line for `server`."""
    print(f"{name:>10}", end=" ", flush=True)
    with server() as (feeder, port, path, process):
        client, pipe = start_client(port, path, subscribers)
        rates = []
        for burst in (1, 50):
            best = 0.0
            for _ in range(3):
                pipe.send((events, False))
                pipe.recv()
                began = time.monotonic()
                feeder.send(("publish", events, burst))
                seen, last, _ = pipe.recv()
                lost = events * subscribers - seen
                if lost:
                    print(f"[{lost} deliveries missing]", end=" ")
                best = max(best, seen / (last - began))
            rates.append(best)
        pipe.send((50, True))
        pipe.recv()
        feeder.send(("slow", 50, 10))
        _, _, latencies = pipe.recv()
        latencies.sort()
        stop_client(client, pipe)
    with server() as (_, port, path, process):
        client, pipe = start_client(port, path, 50)  # so that imports and caches do not count
        stop_client(client, pipe)
        before = memory(process)
        client, pipe = start_client(port, path, idle)
        size = (memory(process) - before) / idle / 1024
        stop_client(client, pipe)
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    print(f"{rates[0]:>14,.0f} {rates[1]:>14,.0f} {p50:>8.1f} {p99:>8.1f} {size:>8.1f}")


def start_client(port: int, path: str, subscribers: int):
    ours, theirs = multiprocessing.Pipe()
    client = multiprocessing.Process(target=run_client, args=(theirs, port, path, subscribers), daemon=True)
    client.start()
    assert ours.recv() == "connected"
    return client, ours


def stop_client(client: multiprocessing.Process, pipe: Connection) -> None:
    pipe.send(None)
    client.join(5)
    client.kill()


def main() -> None:
    """Run it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--idle", type=int, default=5000)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    multiprocessing.set_start_method("spawn")
    print(f"{options.subscribers} subscribers, {options.events} events; idle: {options.idle} subscribers")
    print(f"{'':>10} {'one by one /s':>14} {'bursts of 50':>14} {'p50 ms':>8} {'p99 ms':>8} {'KB idle':>8}")
    measure("Bellhop", notifier, options.subscribers, options.events, options.idle)
    if shutil.which("nginx") and NCHAN_MODULE.exists():
        measure("Nchan", nchan, options.subscribers, options.events, options.idle)
    else:
        print("     Nchan not installed: apt-get install nginx-light libnginx-mod-nchan")


if __name__ == "__main__":
    main()
