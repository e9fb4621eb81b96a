"""What is done with a batch of messages from `leaderboard.scores`."""

import asyncio

from bellhop import faults
from bellhop.amqp.errors import NotNow
from bellhop.amqp.message import Delivery
from bellhop.sql.database import DatabaseAway
from services.leaderboard import metrics
from services.leaderboard.announcer import Announcer
from services.leaderboard.process import give_memory_back
from services.leaderboard.progress import Progress
from services.leaderboard.scores import read_in_parts
from services.leaderboard.standings import Standings


async def apply_scores(
    deliveries: list[Delivery], *, standings: Standings, progress: Progress, announcer: Announcer
) -> None:
    """Apply the scores of all `deliveries`, each message once, and announce what changed.

    One transaction takes about a second, however many boards the scores are for; the next one begins when it is
    committed and readable.

    Raises:
        Reject: a message among them breaks its contract; nothing was applied.
        NotNow: the database is away; some of the messages may be applied, and the same batch goes on with the others.
    """
    progress.took(len(deliveries))
    try:
        parts = await asyncio.to_thread(read_in_parts, deliveries)
        for scores in parts:
            with metrics.BATCH.time():
                changes = await standings.apply(scores)
            faults.point("scores.committed")
            metrics.SCORES.inc(len(scores))
            metrics.CHANGES.inc(sum(change.changed for change in changes))
            announcer.add(changes)
    except DatabaseAway as error:
        raise NotNow(str(error)) from error  # still in hand
    except BaseException:
        progress.took(0)
        raise
    progress.applied(max(part.newest for part in parts))
    give_memory_back()
