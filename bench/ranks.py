"""The leaderboard's figures, beside Redis in the same run: `python -m bench.ranks`.

apply   scores as they lie on the queue -> committed (SQLite, synchronous=FULL) -> readable,
        beside pipelined `ZADD GT`, which is not durable
read    the rank of one player of a million: in process, beside `ZREVRANK` over a socket;
        and over HTTP, by one process of the service, beside a FastAPI route that does nothing
memory  resident, of a process that holds the board; and the time until it is ready after a restart
"""

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from bellhop.amqp.message import Delivery
from bellhop.contracts.envelope import Envelope
from bellhop.local.ports import free_ports
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.web import tokens
from bench import load, stage
from services.leaderboard.process import tune_process
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import read
from services.leaderboard.standings import Standings
from services.leaderboard.store import Store

BOARD = "bench"
MESSAGE = 1000
BATCH = 200  # messages, as in the service's settings
HTTP_ROUNDS = 3
TOKEN_KEY = "0" * 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--players", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of reading over HTTP, each side")
    parser.add_argument("--rounds", type=int, default=8, help=f"of {BATCH} messages with {MESSAGE} scores each")
    arguments = parser.parse_args()
    tune_process()
    print(f"{arguments.players:,} players, batches of {BATCH * MESSAGE:,} scores, SQLite synchronous=FULL\n")
    with tempfile.TemporaryDirectory(prefix="bellhop-bench-") as folder, redis(Path(folder)) as peer:
        database = Path(folder) / "ranks.db"
        ours, theirs = asyncio.run(measure(database, peer, arguments.players, arguments.rounds))
        with restarted(Path(folder), database) as service:
            http, ceiling = read_over_http(service.port, arguments.players, arguments.seconds)
    print(f"{'':34}{'Bellhop':>12}{'Redis':>12}")
    ratio = f"{ours.applied / theirs.applied:10.2f} x" if peer else ""
    print(f"{'apply, scores a second':34}{ours.applied:12,.0f}{theirs.applied:12,.0f}{ratio}")
    print(f"{'read a rank, microseconds':34}{ours.read:12.2f}{theirs.read:12.2f}")
    print(f"{'ready after a restart, seconds':34}{service.seconds:12.2f}")
    print(f"{'resident after a restart, MB':34}{service.megabytes:12.0f}")
    print(f"\n{'':34}{'Bellhop':>12}{'do nothing':>12}")
    ratio = f"{http.rate / ceiling.rate:10.2f} x (wanted 0.8)"
    print(f"{'read a player over HTTP, a second':34}{http.rate:12,.0f}{ceiling.rate:12,.0f}{ratio}")


@dataclass
class Figures:
    """What was measured of one side; NaN where there is no such side."""

    applied: float = math.nan
    """Scores a second."""
    read: float = math.nan
    """Microseconds for the rank of one player."""


def names(players: int) -> list[str]:
    """Return the names of all players, in no order."""
    everybody = [f"player-{number:07d}" for number in range(players)]
    random.Random(1).shuffle(everybody)
    return everybody


async def measure(database: Path, peer: socket.socket | None, players: int, rounds: int) -> tuple[Figures, Figures]:
    """Fill both sides, then let them take turns, so that whatever else the machine does troubles both alike."""
    url = f"sqlite+aiosqlite:///{database}"
    await migrate(url, "services.leaderboard")
    opened = Database(url)
    standings = Standings(Store(opened), past_seasons=1)
    await standings.refresh()
    everybody = names(players)
    chance = random.Random(2)
    ours, theirs = Figures(), Figures()
    for begin in range(0, players, BATCH * MESSAGE):
        part = everybody[begin : begin + BATCH * MESSAGE]
        await apply(standings, deliveries(part, chance))
        if peer is not None:
            zadd(peer, part, chance)
    seconds = [0.0, 0.0]
    for _ in range(rounds):
        chosen = chance.choices(everybody, k=BATCH * MESSAGE)
        seconds[0] += await apply(standings, deliveries(chosen, chance))
        if peer is not None:
            seconds[1] += zadd(peer, chosen, chance)
    ours.applied = rounds * BATCH * MESSAGE / seconds[0]
    ours.read = read_ranks(standings.current(BOARD), chance.choices(everybody, k=200_000))
    if peer is not None:
        theirs.applied = rounds * BATCH * MESSAGE / seconds[1]
        theirs.read = zrevrank(peer, chance.choices(everybody, k=5_000))
    await opened.close()
    return ours, theirs


async def apply(standings: Standings, batch: list[Delivery]) -> float:
    """Do what the service does with a batch; return the seconds until it is committed and readable."""
    began = time.perf_counter()
    await standings.apply(await asyncio.to_thread(read, batch))
    return time.perf_counter() - began


def read_ranks(ranking: Ranking, players: list[str]) -> float:
    """Return microseconds for one rank."""
    players = [(player + " ")[:-1] for player in players]  # fresh ones, as they come out of a request
    began = time.perf_counter()
    for player in players:
        ranking.rank(player)
    return (time.perf_counter() - began) / len(players) * 1e6


def deliveries(players: list[str], chance: random.Random) -> list[Delivery]:
    """Return messages as the gateway writes them, each with its own time, as they come off the queue."""
    made = []
    for begin in range(0, len(players), MESSAGE):
        at = (datetime.now(UTC) + timedelta(microseconds=begin)).isoformat().replace("+00:00", "Z")
        body = json.dumps(
            {
                "scores": [
                    {"board": BOARD, "player": player, "score": float(chance.randrange(1_000_000)), "at": at}
                    for player in players[begin : begin + MESSAGE]
                ]
            },
            separators=(",", ":"),
        ).encode()
        envelope = Envelope(type="score.submitted", source="bench")
        made.append(Delivery(body, envelope, 1, {}, "leaderboard.scores", "events", "score.submitted", False))
    return made


@dataclass
class Restarted:
    """A service that was started on a full database."""

    port: int
    seconds: float
    """Until it could answer."""
    megabytes: float
    """Resident, then."""


@contextmanager
def restarted(folder: Path, database: Path) -> Iterator[Restarted]:
    """Start the service, without a broker, on `database`, until the block ends."""
    port = free_ports(1)[0]
    environment = os.environ | {
        "BELLHOP_AMQP_URL": "amqp://nobody:nothing@127.0.0.1:1/",
        "BELLHOP_DATABASE_URL": f"sqlite+aiosqlite:///{database}",
        "BELLHOP_TOKEN_KEY": TOKEN_KEY,
        "BELLHOP_PORT": str(port),
        # A restart finds the modules compiled, as images do from the start, whatever this shell says about that.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    subprocess.run([sys.executable, "-c", "import services.leaderboard.app"], env=environment, check=True)
    began = time.perf_counter()
    with (folder / "service.log").open("wb") as log:
        service = subprocess.Popen([sys.executable, "-m", "services.leaderboard"], env=environment, stdout=log)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}")  # one: making it costs as much as many requests
    try:
        while not loaded(client):
            if service.poll() is not None or time.perf_counter() - began > 120:
                raise SystemExit((folder / "service.log").read_text())
            time.sleep(0.02)
        yield Restarted(port, time.perf_counter() - began, stage.memory(service.pid) / 2**20)
    finally:
        client.close()
        service.terminate()
        service.wait()


def read_over_http(port: int, players: int, seconds: float) -> tuple[load.Result, load.Result]:
    """Read players of the service at `port` and of a route that does nothing, in turns, over 64 connections."""
    token = tokens.mint(TOKEN_KEY, "bench", 3600, "leaderboard", scopes=["leaderboards:read"])
    chosen = random.Random(3).choices(names(players), k=5_000)
    ours, theirs = load.Result(), load.Result()
    nothing = free_ports(1)[0]
    sides = ((port, f"/v1/leaderboards/{BOARD}", ours), (nothing, f"/nothing/{BOARD}", theirs))
    requests = {
        path: [load.request("GET", f"{path}/players/{player}", authorization=f"Bearer {token}") for player in chosen]
        for _, path, _ in sides
    }
    with stage.process("-m", "bench.nothing", port=nothing):
        for _ in range(HTTP_ROUNDS):
            for at, path, result in sides:
                load.run(at, requests[path], connections=64, seconds=seconds / HTTP_ROUNDS, into=result)
    for result in (ours, theirs):
        if result.statuses.keys() != {200}:
            raise SystemExit(f"not every player could be read: {result.statuses}")
    return ours, theirs


def loaded(client: httpx.Client) -> bool:
    """Say whether the rankings are read; the service is never quite ready here, for it has no broker."""
    try:
        answer = client.get("/readyz")
    except httpx.HTTPError:
        return False
    return bool(answer.json()["checks"].get("rankings") == "ok")


@contextmanager
def redis(folder: Path) -> Iterator[socket.socket | None]:
    """Start a Redis without persistence on a socket of its own; None, and a sentence, where there is none."""
    if shutil.which("redis-server") is None:
        print("redis-server is not installed, so there is nothing to compare with: apt-get install redis-server\n")
        yield None
        return
    path = folder / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not path.exists():
            if time.monotonic() > deadline or server.poll() is not None:
                raise SystemExit("redis-server did not start")
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            yield connection
    finally:
        server.terminate()
        server.wait()


def zadd(connection: socket.socket, players: list[str], chance: random.Random) -> float:
    """Submit a score for each of `players`, a thousand on the way at a time; return the seconds it took."""
    requests = [
        b"".join(
            command("ZADD", BOARD, "GT", str(chance.randrange(1_000_000)), player)
            for player in players[begin : begin + MESSAGE]
        )
        for begin in range(0, len(players), MESSAGE)
    ]
    began = time.perf_counter()  # what is measured is Redis, not the making of its requests
    for request in requests:
        send(connection, request, MESSAGE)
    return time.perf_counter() - began


def zrevrank(connection: socket.socket, players: list[str]) -> float:
    """Return microseconds for one rank."""
    requests = [command("ZREVRANK", BOARD, player) for player in players]
    began = time.perf_counter()
    for request in requests:
        send(connection, request, 1)
    return (time.perf_counter() - began) / len(players) * 1e6


def command(*words: str) -> bytes:
    """Encode a command (https://redis.io/docs/latest/develop/reference/protocol-spec/)."""
    return f"*{len(words)}\r\n".encode() + b"".join(f"${len(word)}\r\n{word}\r\n".encode() for word in words)


def send(connection: socket.socket, request: bytes, answers: int) -> None:
    """Send `request` and wait for its one-line answers."""
    connection.sendall(request)
    while answers > 0:
        answers -= connection.recv(1 << 16).count(b"\r\n")


if __name__ == "__main__":
    main()
