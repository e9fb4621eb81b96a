"""Scores: many games on two boards, and every rank compared with `sorted()` of the same scores.

Each game of a player gives two scores. The board of points keeps the best; the board of games adds up ones, so it shows
how often each score was counted.
"""

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from bellhop.demo.api import gather_limited
from bellhop.demo.steps import StepResult, Stopwatch, System

GAMES = 25_000
PLAYERS = 3_000
BATCH = 1_000
"""Scores in one request, at most."""
CONCURRENT_REQUESTS = 4
PAGE = 1_000
LOOK_SECONDS = 0.5
BEHIND_SECONDS = 10.0
"""Another replica may answer for the other board; it loads a commit a little later."""


@dataclass(frozen=True)
class Game:
    """One game of one player."""

    player: str
    points: int
    at: datetime


@dataclass(frozen=True)
class DemoRank:
    """One player of a ranking, expected or answered."""

    position: int
    rank: int
    player: str
    score: float


async def scores(system: System) -> StepResult:
    """Send all scores, wait until they are counted, and compare all ranks of both boards."""
    result, watch = StepResult(f"{2 * GAMES:,} scores, {PLAYERS:,} players"), Stopwatch()
    points, games = f"{system.run}-points", f"{system.run}-games"
    await system.gateway.put(f"/v1/leaderboards/{points}", {"operator": "best"})
    await system.gateway.put(f"/v1/leaderboards/{games}", {"operator": "sum"})
    played = play(system.run)
    await send(system, points, games, played, result)
    counted = await caught_up(system, games, watch)
    result.seconds = watch.seconds
    times_played: defaultdict[str, int] = defaultdict(int)
    for game in played:
        times_played[game.player] += 1
    result.done = 2 * sum(min(times, counted.get(player, 0)) for player, times in times_played.items())
    result.lost = result.accepted - result.done
    result.doubled = 2 * sum(max(0, counted.get(player, 0) - times) for player, times in times_played.items())
    if result.doubled:
        result.wrong.append(f"{result.doubled} scores were counted twice")
    if result.lost:
        result.wrong.append(f"{result.lost} scores were not counted")
    for board, expected in ((points, best_ranking(played)), (games, games_ranking(played))):
        found = await settled_board(system, board, expected)
        if wrong := sum(ours != theirs for ours, theirs in zip(expected, found, strict=False)):
            result.wrong.append(f"{wrong} of {len(expected)} places on the board {board} are not as sorted() has them")
        if len(expected) != len(found):
            result.wrong.append(f"the board {board} has {len(found)} players instead of {len(expected)}")
    result.remark = f"every rank as sorted() has it, {2 * PLAYERS:,} places" if not result.wrong else ""
    return result


def play(run: str) -> list[Game]:
    """Return the games; they depend only on the name of the run."""
    chance = random.Random(run)
    began = datetime.now(UTC) - timedelta(microseconds=GAMES)
    players = [f"player-{number:04d}" for number in range(PLAYERS)]
    # Few points, so that there are many ties.
    return [
        Game(
            players[number] if number < PLAYERS else chance.choice(players),
            chance.randrange(2_000),
            began + timedelta(microseconds=number),
        )
        for number in range(GAMES)
    ]


async def send(system: System, points: str, games: str, played: list[Game], result: StepResult) -> None:
    """Send both scores of each game in batches, several concurrently."""
    bar = system.progress.add_task("  accepted", total=2 * GAMES)

    async def batch(begin: int) -> None:
        body = []
        for game in played[begin : begin + BATCH // 2]:
            common = {"player": game.player, "at": game.at.isoformat()}
            body.append({"board": points, "score": game.points} | common)
            body.append({"board": games, "score": 1} | common)
        answer = await system.gateway.post("/v1/scores", body, key=f"{system.run}-scores-{begin}")
        result.accepted += answer["accepted"]
        system.progress.advance(bar, len(body))

    await gather_limited([partial(batch, begin) for begin in range(0, GAMES, BATCH // 2)], CONCURRENT_REQUESTS)


async def caught_up(system: System, games: str, watch: Stopwatch) -> dict[str, int]:
    """Return the number of games of each player on the board, when all are counted or the count stalls."""
    bar = system.progress.add_task("  counted", total=2 * GAMES)
    while True:
        counted = {place.player: round(place.score) for place in await whole_board(system, games)}
        total = sum(counted.values())
        system.progress.update(bar, completed=2 * total)
        if total >= GAMES or watch.stalled(total):
            return counted
        await asyncio.sleep(LOOK_SECONDS)


async def settled_board(system: System, board: str, expected: list[DemoRank]) -> list[DemoRank]:
    """Return all ranks of a board, as soon as they are `expected`, or after `BEHIND_SECONDS`."""
    watch = Stopwatch()
    while True:
        found = await whole_board(system, board)
        if found == expected or watch.seconds > BEHIND_SECONDS:
            return found
        await asyncio.sleep(LOOK_SECONDS)


async def whole_board(system: System, board: str) -> list[DemoRank]:
    """Return all ranks of a board, read page by page."""
    places: list[DemoRank] = []
    after: int | None = 0
    while after is not None:
        page: dict[str, Any] = await system.gateway.get(f"/v1/leaderboards/{board}", limit=PAGE, after=after)
        places += [
            DemoRank(entry["position"], entry["rank"], entry["player"], entry["score"]) for entry in page["entries"]
        ]
        after = page["next"]
    return places


def best_ranking(played: list[Game]) -> list[DemoRank]:
    """Return the ranking by each player's best game; of equal ones the earlier counts."""
    best: dict[str, tuple[float, datetime]] = {}
    for game in played:
        this = (-float(game.points), game.at)
        best[game.player] = min(best.get(game.player, this), this)
    return ranking(best)


def games_ranking(played: list[Game]) -> list[DemoRank]:
    """Return the ranking by the number of games; of equal ones the earlier counts."""
    totals: dict[str, tuple[float, datetime]] = {}
    for game in played:
        total, at = totals.get(game.player, (0.0, game.at))
        totals[game.player] = (total - 1, max(at, game.at))
    return ranking(totals)


def ranking(results: dict[str, tuple[float, datetime]]) -> list[DemoRank]:
    """Return the ranks by (negated score, time): ranks 1, 1, 3 for equal scores, positions 1, 2, 3."""
    places: list[DemoRank] = []
    for position, ((key, _), player) in enumerate(sorted((value, player) for player, value in results.items()), 1):
        tied = bool(places) and places[-1].score == -key
        places.append(DemoRank(position, places[-1].rank if tied else position, player, -key))
    return places
