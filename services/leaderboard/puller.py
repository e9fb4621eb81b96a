"""What is done with a batch of messages from `leaderboard.scores`."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import orjson

from bellhop import faults
from bellhop.amqp.errors import NotNow, PublishError, Reject
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.settling import bury
from bellhop.contracts.base import derived_id
from bellhop.sql.database import DatabaseAway
from services.leaderboard import metrics
from services.leaderboard.announcer import Announcer
from services.leaderboard.process import give_memory_back
from services.leaderboard.progress import Progress
from services.leaderboard.scores import Scores, read_in_parts
from services.leaderboard.standings import Standings

NAMED = 10
"""Boards that a dead letter names at most; all of them stand in its body."""


async def apply_scores(
    deliveries: list[Delivery],
    *,
    standings: Standings,
    progress: Progress,
    announcer: Announcer,
    publisher: Publisher,
) -> None:
    """Apply the scores of all `deliveries`, each message once, and announce what changed.

    One transaction takes about a second, however many boards the scores are for; the next one begins when it is
    committed and readable.

    Scores on new boards for which there is no room become dead letters, a message with them alone.

    Raises:
        Reject: a message among them breaks its contract; nothing was applied.
        NotNow: the database is away; some of the messages may be applied, and the same batch goes on with the others.
    """
    progress.took(len(deliveries))
    try:
        parts = await asyncio.to_thread(read_in_parts, deliveries)
        for scores in parts:
            if refused := standings.refused(scores.boards):
                scores = await _dead_letter(scores, refused, deliveries, publisher)
            with metrics.BATCH.time():
                changes = await standings.apply(scores)
            faults.point("scores.committed")
            metrics.SCORES.inc(len(scores))
            metrics.CHANGES.inc(sum(change.changed for change in changes))
            announcer.add([change for change in changes if not standings.is_hidden(change.board)])
    except DatabaseAway as error:
        raise NotNow(str(error)) from error  # still in hand
    except BaseException:
        progress.took(0)
        raise
    progress.applied(max(part.newest for part in parts))
    give_memory_back()


async def _dead_letter(scores: Scores, refused: set[str], deliveries: list[Delivery], publisher: Publisher) -> Scores:
    """Move the scores on `refused` boards to the dead letters; return the others.

    It comes before the others are applied: after a crash in between there are two such letters with one id, and a
    replay of both counts once.
    """
    of_message = {one.envelope.identity: one for one in deliveries}
    letters: dict[int, list[dict[str, Any]]] = {}
    for index, board in enumerate(scores.boards):
        if board in refused:
            letters.setdefault(scores.message.item(index), []).append(scores.document(index))
    for number, documents in letters.items():
        delivery = of_message[scores.messages[number]]
        envelope = replace(delivery.envelope, id=derived_id(delivery.envelope.id, "refused"))
        named = ", ".join(sorted({document["board"] for document in documents})[:NAMED])
        reason = Reject(f"there are as many boards as there may be (BELLHOP_BOARDS_LIMIT), so none begins: {named}")
        letter = replace(delivery, body=orjson.dumps({"scores": documents}), envelope=envelope)
        try:
            await bury(publisher, letter, reason)
        except PublishError as error:
            raise NotNow(f"refused scores could not be moved to the dead letters: {error}") from error
    return scores.only(np.array([board not in refused for board in scores.boards], np.bool_))
