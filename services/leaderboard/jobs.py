"""Periodic jobs of the leaderboard."""

from collections.abc import Sequence
from datetime import timedelta

from bellhop.contracts.base import now
from bellhop.observe.logs import get_logger
from bellhop.service import Job
from bellhop.sql.database import DatabaseUnavailable
from services.leaderboard import metrics
from services.leaderboard.announcer import IDLE_SECONDS
from services.leaderboard.parts import Leaderboard
from services.leaderboard.progress import LOOK_SECONDS
from services.leaderboard.scoring import to_micros

PRUNE_SECONDS = 60.0
PRUNE_LIMIT_SECONDS = 3600.0

log = get_logger(__name__)


def jobs(leaderboard: Leaderboard) -> Sequence[Job[Leaderboard]]:
    """Return the table of jobs."""
    return [
        Job("refreshing the rankings", leaderboard.settings.refresh_seconds, _refresh),
        Job("pruning the inbox", PRUNE_SECONDS, _prune, limit=PRUNE_LIMIT_SECONDS),
        Job("watching the progress", LOOK_SECONDS, _watch),
        Job(
            "announcing changes",
            IDLE_SECONDS,
            lambda leaderboard: leaderboard.announcer.announce(),
            wake=lambda leaderboard: leaderboard.announcer.some,
        ),
    ]


async def _refresh(leaderboard: Leaderboard) -> None:
    try:
        await leaderboard.standings.refresh()
    except DatabaseUnavailable as error:
        # A replica that cannot read cannot apply scores: let another replica consume.
        leaderboard.give_back(str(error))
        raise


async def _prune(leaderboard: Leaderboard) -> None:
    discarded = await leaderboard.store.discard()
    if discarded:
        log.info("deleted the results of deleted boards", count=discarded)
    oldest = now() - timedelta(days=leaderboard.settings.inbox_days)
    forgotten = await leaderboard.store.prune(to_micros(oldest))
    if forgotten:
        log.info("deleted expired ids of messages and scores", count=forgotten)


async def _watch(leaderboard: Leaderboard) -> None:
    leaderboard.progress.look()
    freshness = leaderboard.progress.freshness()
    metrics.PENDING.set(freshness.pending or 0)
    metrics.LAG.set(freshness.lag_seconds if freshness.lag_seconds is not None else float("nan"))
