"""The leaderboard: takes scores off their queue in batches, keeps the ranks in memory, answers who stands where."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI

from bellhop.amqp.batches import BatchPuller
from bellhop.amqp.connection import Connection
from bellhop.amqp.publisher import Publisher
from bellhop.background import Background
from bellhop.contracts.base import now
from bellhop.contracts.scores import MARK
from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.migrations import migrate
from bellhop.web import tokens
from bellhop.web.auth import Caller
from bellhop.web.health import check
from bellhop.web.limits import Limits
from bellhop.web.problems import Problem
from bellhop.web.server import create_app
from services.leaderboard import metrics, routes
from services.leaderboard.announcer import IDLE_SECONDS, Announcer
from services.leaderboard.boards import to_micros
from services.leaderboard.process import give_memory_back, tune_process
from services.leaderboard.progress import LOOK_SECONDS, Progress
from services.leaderboard.puller import Pace, apply_scores
from services.leaderboard.settings import LeaderboardSettings
from services.leaderboard.standings import Standings
from services.leaderboard.store import Store

# The table: which queue, which handler. The queue has a single active consumer, so one replica applies and the
# others stand by; they see what it committed at their next refresh.
TABLE = {"leaderboard.scores": apply_scores}

PRUNE_SECONDS = 60.0
PRUNE_LIMIT_SECONDS = 3600.0
PREPARE_SECONDS = 3600.0
"""A migration of a large database may take so long."""

log = get_logger(__name__)


def build(settings: LeaderboardSettings) -> FastAPI:
    """Return the application; its lifespan connects and disconnects everything."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        url = settings.amqp_url.get_secret_value()
        consuming = Connection(url, f"bellhop/leaderboard/{settings.instance}/consume")
        publishing = Connection(url, f"bellhop/leaderboard/{settings.instance}/publish")
        publisher = Publisher(publishing)
        database = Database(settings.database_url.get_secret_value())
        store = Store(database)
        standings = Standings(store, past_seasons=settings.past_seasons, boards_limit=settings.boards_limit)
        pullers: list[BatchPuller] = []
        progress = Progress(lambda: standings.as_of, lambda: _waiting(pullers))
        announcer = Announcer(publisher, lambda: standings.as_of)
        for queue, handler in TABLE.items():
            handle = partial(
                handler, standings=standings, progress=progress, announcer=announcer, publisher=publisher, pace=Pace()
            )
            pullers.append(
                BatchPuller(
                    consuming,
                    publisher,
                    queue,
                    handle,
                    size=settings.pull_messages,
                    interval=settings.pull_seconds,
                    usable=store.check_writable,
                    counts=lambda delivery: delivery.envelope.type != MARK,
                )
            )

        async def ready() -> dict[str, str]:
            return {
                "rankings": "ok" if standings.loaded else "being read from the database",
                "database": standings.trouble or await check(database.ping),
                "pulling": "; ".join(puller.trouble for puller in pullers if puller.trouble) or "ok",
                "broker": publishing.explanation if publishing.explanation != "ok" else consuming.explanation,
            }

        async def prepare() -> None:
            await migrate(settings.database_url.get_secret_value(), "services.leaderboard")
            await _load(standings)
            # Only now: a batch for a ranking that is half read would have to wait anyway.
            for puller in pullers:
                puller.start()
            background.every("refreshing the rankings", settings.refresh_seconds, partial(_refresh, standings, pullers))
            background.every(
                "pruning the inbox", PRUNE_SECONDS, partial(_prune, store, settings), limit=PRUNE_LIMIT_SECONDS
            )
            background.every("watching the progress", LOOK_SECONDS, partial(_watch, progress))
            background.every("announcing changes", IDLE_SECONDS, announcer.announce, wake=announcer.some)

        background: Background = app.state.background
        app.state.authenticate = authenticator(settings.token_key.get_secret_value())
        app.state.ready = ready
        app.state.leaderboard = routes.Leaderboard(standings, progress)
        await publishing.start()
        await consuming.start()
        background.once("preparation", prepare, limit=PREPARE_SECONDS)
        try:
            yield
        finally:
            await background.stop()
            await asyncio.gather(*(puller.stop(settings.shutdown_seconds) for puller in pullers))
            await consuming.close()
            await publishing.close()
            await database.close()

    tune_process()
    # Most requests come from the gateway under one name, and it has counted them by key already.
    limits = Limits(key_rate=None)
    return create_app("Bellhop leaderboard", version("bellhop"), lifespan, [routes.router], limits=limits)


def authenticator(key: str) -> Callable[[str], Awaitable[Caller | None]]:
    """Return what finds the caller of a token. The gateway uses one for many requests, so they are remembered."""
    known: dict[str, tuple[float, Caller]] = {}

    async def authenticate(token: str) -> Caller | None:
        expires, caller = known.get(token, (0.0, None))
        if caller is not None and expires > time.time():
            return caller
        try:
            claims = tokens.read(token, key, "leaderboard")
        except Problem:
            return None
        if len(known) >= 1000:
            known.clear()
        caller = Caller(claims.subject, claims.subject, frozenset(claims.scopes))
        known[token] = (claims.valid_until, caller)
        return caller

    return authenticate


async def _load(standings: Standings) -> None:
    began = time.monotonic()
    await standings.refresh()
    give_memory_back()
    log.info("read the rankings", boards=len(standings.boards), seconds=round(time.monotonic() - began, 2))


async def _refresh(standings: Standings, pullers: list[BatchPuller]) -> None:
    try:
        await standings.refresh()
    except DatabaseUnavailable as error:
        # Who cannot read cannot count: the replica that can must not wait for us.
        for puller in pullers:
            puller.give_back(str(error))
        raise


async def _prune(store: Store, settings: LeaderboardSettings) -> None:
    discarded = await store.discard()
    if discarded:
        log.info("deleted the results of deleted boards", count=discarded)
    forgotten = await store.prune(to_micros(now() - timedelta(days=settings.inbox_days)))
    if forgotten:
        log.info("forgot old ids of messages and scores", count=forgotten)


async def _watch(progress: Progress) -> None:
    progress.look()
    freshness = progress.freshness()
    metrics.PENDING.set(freshness.pending or 0)
    metrics.LAG.set(freshness.lag_seconds if freshness.lag_seconds is not None else float("nan"))


def _waiting(pullers: list[BatchPuller]) -> int | None:
    waiting = [puller.pending for puller in pullers]
    return None if None in waiting else sum(count or 0 for count in waiting)
