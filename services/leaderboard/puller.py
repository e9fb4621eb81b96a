"""What is done with a batch of messages from `leaderboard.scores`."""

import asyncio

from bellhop import faults
from bellhop.amqp.errors import NotNow, PublishError
from bellhop.amqp.message import Delivery, Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import LEADERBOARD
from bellhop.contracts.scores import LeaderboardChanged, Place
from bellhop.observe.logs import get_logger
from bellhop.sql.database import DatabaseAway
from services.leaderboard import metrics
from services.leaderboard.boards import from_micros
from services.leaderboard.process import give_memory_back
from services.leaderboard.progress import Progress
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import read
from services.leaderboard.standings import Change, Standings

TOP = 10

log = get_logger(__name__)


async def apply_scores(
    deliveries: list[Delivery], *, standings: Standings, progress: Progress, publisher: Publisher
) -> None:
    """Apply the scores of all `deliveries` in one transaction, each message once, and announce what changed.

    Raises:
        Reject: a message among them breaks its contract; nothing was applied.
        NotNow: the database is away.
    """
    progress.took(len(deliveries))
    try:
        with metrics.BATCH.time():
            scores = await asyncio.to_thread(read, deliveries)
            changes = await standings.apply(scores)
    except DatabaseAway as error:
        raise NotNow(str(error)) from error  # still in hand
    except BaseException:
        progress.took(0)
        raise
    faults.point("scores.committed")
    progress.applied(scores.newest)
    metrics.SCORES.inc(len(scores))
    metrics.CHANGES.inc(sum(change.changed for change in changes))
    give_memory_back()
    await announce(changes, publisher)


async def announce(changes: list[Change], publisher: Publisher) -> None:
    """Publish a `leaderboard.changed` for each change.

    One that cannot be published is counted and given up: the scores are safe, and the next one carries the whole top.
    """
    published = await asyncio.gather(
        *(publisher.publish("notifications", "leaderboard.changed", changed(change)) for change in changes),
        return_exceptions=True,
    )
    failed = [error for error in published if isinstance(error, BaseException)]
    for error in failed:
        if not isinstance(error, PublishError):
            raise error
    if failed:
        metrics.UNANNOUNCED.inc(len(failed))
        log.warning("changes of leaderboards were not announced", count=len(failed), reason=str(failed[0]))


def changed(change: Change) -> Message:
    """Return the message that tells browsers of `change`."""
    top, earlier = _places(change.after), _places(change.before)
    names, earlier_names = [place.player for place in top], [place.player for place in earlier]
    body = LeaderboardChanged(
        board=change.board,
        season=change.season or None,
        top=top,
        entered=[name for name in names if name not in earlier_names],
        left=[name for name in earlier_names if name not in names],
        changed=change.changed,
        players=len(change.after),
        as_of=now(),
    )
    envelope = Envelope(type="leaderboard.changed", source=LEADERBOARD, subject=f"leaderboard:{change.board}")
    return Message(body.model_dump_json().encode(), envelope)


def _places(ranking: Ranking) -> list[Place]:
    return [
        Place(
            position=entry.position,
            rank=entry.rank,
            player=entry.player,
            score=entry.score,
            at=from_micros(entry.at),
        )
        for entry in ranking.page(0, TOP)
    ]
