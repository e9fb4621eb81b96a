"""Handler of batches of messages from `leaderboard.scores`."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from bellhop import faults
from bellhop.amqp.errors import GiveBack, Hold, PublishError, Reject
from bellhop.amqp.handling.dead_letter import dead_letter
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.amqp.retry import DEFAULT
from bellhop.contracts.base import derived_id
from bellhop.contracts.scores import MARK, ScoreMark
from bellhop.sql.database import DatabaseUnavailable
from services.leaderboard import metrics
from services.leaderboard.parts import Leaderboard
from services.leaderboard.process import give_memory_back
from services.leaderboard.scores import NO_SCORES, Scores, accepted_at, read_in_parts
from services.leaderboard.scoring import to_micros
from services.leaderboard.standings import Standings

NAMED = 10
"""Boards that the reason of a dead letter names, at most; its body has all of them."""


async def apply_scores(leaderboard: Leaderboard, deliveries: list[Delivery]) -> None:
    """Apply the scores of all `deliveries`, and announce changed boards. Idempotent: each message is applied once.

    The scores are split into transactions of about a second; each is readable when it is committed.

    Scores on new boards beyond the limit are dead-lettered, in a message with only these scores. A single message that
    fails goes to a retry queue or to the dead letters; `as_of` does not advance beyond it while it waits.

    Raises:
        Reject: a message breaks its contract; nothing was applied.
        GiveBack: the database is unavailable; some of the messages may be applied, and are not applied again.
        Hold: a dead letter could not be published; some of the messages may be applied, and are not applied again.
    """
    try:
        await _apply(leaderboard, deliveries)
    except Hold:
        raise
    except Exception as error:
        if len(deliveries) == 1 and deliveries[0].envelope.type != MARK:
            await _note_failure(deliveries[0], error, leaderboard.standings)
        raise


async def _note_failure(delivery: Delivery, error: Exception, standings: Standings) -> None:
    message = delivery.envelope.identity
    try:
        if isinstance(error, Reject) or DEFAULT.retry_queue(delivery.attempt) is None:
            await standings.give_up(message)
        else:
            await standings.postpone(message, accepted_at(delivery))
    except DatabaseUnavailable as failure:
        raise GiveBack(str(failure)) from failure


async def _apply(leaderboard: Leaderboard, deliveries: list[Delivery]) -> None:
    standings, progress, pace = leaderboard.standings, leaderboard.progress, leaderboard.pace
    scores_only = [delivery for delivery in deliveries if delivery.envelope.type != MARK]
    marks = [_until(delivery) for delivery in deliveries if delivery.envelope.type == MARK]
    progress.took(len(scores_only))
    try:
        parts = await asyncio.to_thread(read_in_parts, scores_only, pace.work)
        if not parts and marks:
            await standings.apply(NO_SCORES, max(marks))
        for number, scores in enumerate(parts, start=1):
            if refused := standings.refused(scores.boards):
                scores = await _dead_letter(scores, refused, scores_only, leaderboard.publisher)
            with metrics.BATCH.time():
                # A mark holds when all messages before it are applied.
                changes = await standings.apply(scores, max(marks, default=None) if number == len(parts) else None)
            faults.point("scores.committed")
            metrics.SCORES.inc(len(scores))
            metrics.CHANGES.inc(sum(change.changed for change in changes))
            leaderboard.announcer.add([change for change in changes if not standings.is_hidden(change.board)])
            pace.faster()
    except DatabaseUnavailable as error:
        pace.slower()
        raise GiveBack(str(error)) from error
    finally:
        progress.took(0)
    give_memory_back()


def _until(delivery: Delivery) -> int:
    try:
        return to_micros(ScoreMark.read(delivery.body).until)
    except ValidationError:
        raise Reject("not a scores.mark: `until` must be an RFC 3339 time") from None


async def _dead_letter(scores: Scores, refused: set[str], deliveries: list[Delivery], publisher: Publisher) -> Scores:
    """Dead-letter the scores on `refused` boards; return the others.

    Done before the others are applied: after a crash in between there are two dead letters with one id, and a replay of
    both counts once.
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
        reason = Reject(f"the limit of boards (BELLHOP_BOARDS_LIMIT) is reached, so these are not created: {named}")
        letter = replace(delivery, body=orjson.dumps({"scores": documents}), envelope=envelope)
        try:
            await dead_letter(publisher, letter, reason)
        except PublishError as error:
            raise Hold(f"refused scores could not be moved to the dead letters: {error}") from error
    return scores.only(np.array([board not in refused for board in scores.boards], np.bool_))
