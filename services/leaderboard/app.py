"""The leaderboard: applies scores in batches, keeps rankings in memory, and serves them."""

import time
from collections.abc import Sequence

from fastapi import FastAPI

from bellhop.contracts.scores import MARK
from bellhop.observe.logs import get_logger
from bellhop.service import Batches, Service
from bellhop.web.request_limits import Limits
from services.leaderboard import routes
from services.leaderboard.jobs import jobs
from services.leaderboard.parts import Leaderboard, open_leaderboard
from services.leaderboard.process import give_memory_back, tune_process
from services.leaderboard.puller import apply_scores
from services.leaderboard.settings import LeaderboardSettings

log = get_logger(__name__)


def queues(leaderboard: Leaderboard) -> Sequence[Batches[Leaderboard]]:
    """Return the queues of the leaderboard.

    The queue of scores has a single active consumer: one replica applies scores, and the others load what it committed
    at their next refresh.
    """
    return [
        Batches(
            "leaderboard.scores",
            apply_scores,
            size=leaderboard.settings.pull_messages,
            seconds=leaderboard.settings.pull_seconds,
            counts=lambda delivery: delivery.envelope.type != MARK,
            usable=lambda leaderboard: leaderboard.store.check_writable(),
        )
    ]


async def prepare(leaderboard: Leaderboard) -> None:
    """Load all current rankings before the first batch."""
    began = time.monotonic()
    await leaderboard.standings.refresh()
    give_memory_back()
    seconds = round(time.monotonic() - began, 2)
    log.info("read the rankings", boards=len(leaderboard.standings.boards), seconds=seconds)


async def ready(leaderboard: Leaderboard) -> dict[str, str]:
    """Return the leaderboard's own checks for /readyz."""
    standings = leaderboard.standings
    database = {"database": standings.failure} if standings.failure else {}
    return database | {"rankings": "ok" if standings.loaded else "being read from the database"}


SERVICE = Service(
    "leaderboard", LeaderboardSettings, open_leaderboard, [routes.router],
    queues=queues, jobs=jobs, prepare=prepare, ready=ready,
    # Most requests come from the gateway, with one subject; it has limited them by API key already.
    limits=lambda _: Limits(key_rate=None),
)  # fmt: skip


def build(settings: LeaderboardSettings) -> FastAPI:
    """Return the application."""
    tune_process()
    return SERVICE.create_app(settings)
