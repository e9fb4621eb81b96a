"""What many leaderboards cost: `python -m bench.boards`.

memory   resident, of a service that was restarted on 100,000 boards of 10 to 100 players; and until it is ready
refresh  CPU at rest: a look at what other replicas wrote, which is nothing
batch    10,000 scores on 10,000 boards: committed (SQLite, synchronous=FULL) and readable
"""

import argparse
import asyncio
import random
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import orjson

from bellhop.amqp.message import Delivery
from bellhop.contracts.envelope import Envelope
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bench.ranks import restarted
from services.leaderboard.process import tune_process
from services.leaderboard.scores import read_in_parts
from services.leaderboard.standings import Standings
from services.leaderboard.store import Store

MESSAGE = 1000
BATCH_BOARDS = 10_000
ROUNDS = 5
REFRESHES = 200


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boards", type=int, default=100_000)
    arguments = parser.parse_args()
    tune_process()
    with tempfile.TemporaryDirectory(prefix="bellhop-bench-") as folder:
        database = Path(folder) / "boards.db"
        batch, new, refresh = asyncio.run(measure(database, arguments.boards))
        with restarted(Path(folder), database) as service:
            print(f"{arguments.boards:,} boards of 10 to 100 players\n")
            print(f"{'resident after a restart, MB':48}{service.megabytes:10.0f}  (wanted 400)")
            print(f"{'ready after a restart, seconds':48}{service.seconds:10.1f}")
            print(f"{'refresh at rest, CPU milliseconds':48}{refresh * 1000:10.2f}")
            print(f"{'10,000 scores on 10,000 boards, seconds':48}{batch:10.2f}  (wanted 1.0)")
            print(f"{'10,000 scores on 10,000 new boards, seconds':48}{new:10.2f}")


async def measure(database: Path, boards: int) -> tuple[float, float, float]:
    """Fill a database; return seconds for a batch on boards that are there, for one on new ones, and for a refresh."""
    url = f"sqlite+aiosqlite:///{database}"
    await migrate(url, "services.leaderboard")
    opened = Database(url)
    standings = Standings(Store(opened), past_seasons=1, boards_limit=10**9)
    await standings.refresh()
    chance = random.Random(1)
    for begin in range(0, boards, 2000):
        names = [f"board-{number:06d}" for number in range(begin, min(boards, begin + 2000))]
        await apply(
            standings, [(board, f"player-{n:05d}") for board in names for n in range(chance.randint(10, 100))], chance
        )
    rounds = []
    for _ in range(ROUNDS):
        chosen = chance.sample(range(boards), min(boards, BATCH_BOARDS))
        pairs = [(f"board-{number:06d}", f"player-{chance.randrange(100):05d}") for number in chosen]
        rounds.append(await apply(standings, pairs, chance))
    new = await apply(standings, [(f"new-{number:06d}", "player") for number in range(BATCH_BOARDS)], chance)
    began = time.process_time()
    for _ in range(REFRESHES):
        await standings.refresh()
    refresh = (time.process_time() - began) / REFRESHES
    await opened.close()
    return min(rounds), new, refresh


async def apply(standings: Standings, pairs: list[tuple[str, str]], chance: random.Random) -> float:
    """Apply a score for each (board, player); return the seconds until all are committed and readable."""
    batch = deliveries(pairs, chance)
    began = time.perf_counter()
    for part in await asyncio.to_thread(read_in_parts, batch):
        await standings.apply(part)
    return time.perf_counter() - began


def deliveries(pairs: list[tuple[str, str]], chance: random.Random) -> list[Delivery]:
    """Return messages as the gateway writes them."""
    at = datetime.now(UTC)
    made = []
    for begin in range(0, len(pairs), MESSAGE):
        scores = [
            {"board": board, "player": player, "score": float(chance.randrange(1_000_000)), "at": at}
            for board, player in pairs[begin : begin + MESSAGE]
        ]
        envelope = Envelope(type="score.submitted", source="bench")
        body = orjson.dumps({"scores": scores})
        made.append(Delivery(body, envelope, 1, {}, "leaderboard.scores", "work", "leaderboard.scores", False))
    return made


if __name__ == "__main__":
    main()
