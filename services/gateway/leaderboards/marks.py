"""Marks among the scores: with them the leaderboard knows until when it has applied every score.

The queue is first in, first out, but scores that could not be published wait in the outbox and arrive later. A mark
contains the time before which none waits there: when the mark is consumed, every score that was answered 202 before
that time has been applied. Each mark is valid by itself, so any number of gateways may publish them.
"""

from datetime import UTC, datetime
from time import monotonic

import sqlalchemy as sa

from bellhop.amqp.errors import PublishError
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.base import now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import GATEWAY
from bellhop.contracts.scores import MARK, ScoreMark
from bellhop.sql.database import Database
from bellhop.web.peer import Peer, PeerUnavailable
from services.gateway.outbox.routing import EVENTS, SCORES_QUEUE
from services.gateway.tables import outbox

MARK_SECONDS = 1.0
LOOK_SECONDS = 5.0
"""Interval of the check for a leaderboard: without one the marks would fill its queue."""
LOOK_TIMEOUT_SECONDS = 2.0

_WORK = "work"
# By their destination now, and by that of earlier versions.
_SCORES = sa.or_(
    sa.and_(outbox.c.exchange == _WORK, outbox.c.routing_key == SCORES_QUEUE),
    sa.and_(outbox.c.exchange == EVENTS, outbox.c.routing_key == "score.submitted"),
)


class Marks:
    """Publishes marks while there is a leaderboard."""

    def __init__(self, database: Database, publisher: Publisher, leaderboard: Peer) -> None:
        self._database = database
        self._publisher = publisher
        self._leaderboard = leaderboard
        self._there = False
        self._look_at = 0.0

    async def publish(self) -> None:
        """Publish one mark; without RabbitMQ or a leaderboard, none.

        Raises:
            DatabaseUnavailable: it is unknown what waits in the outbox.
        """
        if not await self._leaderboard_exists():
            return
        until = min(now(), await self._oldest_waiting() or datetime.max.replace(tzinfo=UTC))
        body = ScoreMark(until=until).model_dump_json().encode()
        try:
            await self._publisher.publish(_WORK, SCORES_QUEUE, Message(body, Envelope(type=MARK, source=GATEWAY)))
        except PublishError:
            return  # then `as_of` does not advance, which is correct

    async def _leaderboard_exists(self) -> bool:
        if monotonic() >= self._look_at:
            try:
                answer = await self._leaderboard.request("GET", "/healthz", timeout_seconds=LOOK_TIMEOUT_SECONDS)
                self._there = answer.is_success
            except PeerUnavailable:
                self._there = False
            self._look_at = monotonic() + LOOK_SECONDS
        return self._there

    async def _oldest_waiting(self) -> datetime | None:
        """Return when the oldest scores in the outbox were accepted."""
        query = sa.select(outbox.c.id).where(_SCORES, outbox.c.due_at == 0).order_by(outbox.c.sequence).limit(1)
        async with self._database.read() as connection:
            id_: str | None = await connection.scalar(query)
        return None if id_ is None else _made_at(id_)


def _made_at(id_: str) -> datetime:
    """Return when an id of ours (UUID version 7) was made."""
    return datetime.fromtimestamp(int(id_[:8] + id_[9:13], 16) / 1000, UTC)
