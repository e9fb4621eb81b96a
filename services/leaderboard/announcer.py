"""Telling browsers what changed: the latest state of each board, at a bounded rate.

A batch may change ten thousand boards, and a board in every batch. What is announced is the state at the moment of
announcing, so a board waits here at most once: a further change joins the one that waits. Nothing is kept over a
restart, because the next change of a board carries its whole top.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from bellhop.amqp.errors import PublishError
from bellhop.amqp.message import Message
from bellhop.amqp.publisher import Publisher
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import LEADERBOARD
from bellhop.contracts.scores import LeaderboardChanged, Place
from bellhop.observe.logs import get_logger
from services.leaderboard import metrics
from services.leaderboard.boards import from_micros
from services.leaderboard.standings import AnyRanking, Change, Key

TOP = 10
ANNOUNCED_PER_SECOND = 500
IDLE_SECONDS = 60.0

log = get_logger(__name__)


@dataclass(slots=True)
class _Waiting:
    earlier: list[str]
    """The top as it was announced last."""
    after: AnyRanking
    changed: int


class Announcer:
    """Publishes `leaderboard.changed`; boards that changed first come first."""

    def __init__(self, publisher: Publisher, as_of: Callable[[], datetime | None]) -> None:
        self._publisher = publisher
        self._as_of = as_of
        self._waiting: dict[Key, _Waiting] = {}
        self.some = asyncio.Event()
        """Set when there is something to announce."""
        self._failing = False
        metrics.ANNOUNCEMENTS.set_function(lambda: len(self._waiting))

    def add(self, changes: list[Change]) -> None:
        """Take changes up for announcing."""
        if changes and not self._waiting:  # what waits already has its time
            self.some.set()
        for change in changes:
            waiting = self._waiting.get((change.board, change.season))
            if waiting is None:
                earlier = change.before.top(TOP)
                self._waiting[change.board, change.season] = _Waiting(earlier, change.after, change.changed)
            else:
                waiting.after = change.after
                waiting.changed += change.changed

    async def announce(self) -> float:
        """Announce up to `ANNOUNCED_PER_SECOND` boards; return after how many seconds to call again.

        What could not be published goes on waiting.
        """
        took = {key: self._waiting.pop(key) for key in list(islice(self._waiting, ANNOUNCED_PER_SECOND))}
        try:
            published = await asyncio.gather(
                *(
                    self._publisher.publish(
                        "notifications", "leaderboard.changed", message(key, waiting, self._as_of())
                    )
                    for key, waiting in took.items()
                ),
                return_exceptions=True,
            )
        except asyncio.CancelledError:
            for key, waiting in took.items():
                self._put_back(key, waiting)
            raise
        failed = [error for error in published if isinstance(error, BaseException)]
        for (key, waiting), error in zip(took.items(), published, strict=True):
            if isinstance(error, BaseException):
                self._put_back(key, waiting)
        for error in failed:
            if not isinstance(error, PublishError):
                raise error
        metrics.UNANNOUNCED.inc(len(failed))
        if failed and not self._failing:
            log.warning("changes of leaderboards wait to be announced", count=len(failed), reason=str(failed[0]))
        self._failing = bool(failed)
        return 1.0 if self._waiting else IDLE_SECONDS

    def _put_back(self, key: Key, waiting: _Waiting) -> None:
        later = self._waiting.get(key)
        if later is None:
            self._waiting[key] = waiting
        else:
            later.earlier = waiting.earlier
            later.changed += waiting.changed


def message(key: Key, waiting: _Waiting, as_of: datetime | None) -> Message:
    """Return the message that tells browsers of a change."""
    board, season = key
    top = _places(waiting.after)
    names = [place.player for place in top]
    body = LeaderboardChanged(
        board=board,
        season=season or None,
        top=top,
        entered=[name for name in names if name not in waiting.earlier],
        left=[name for name in waiting.earlier if name not in names],
        changed=waiting.changed,
        players=len(waiting.after),
        as_of=as_of,
    )
    envelope = Envelope(type="leaderboard.changed", source=LEADERBOARD, subject=f"leaderboard:{board}")
    return Message(body.model_dump_json().encode(), envelope)


def _places(ranking: AnyRanking) -> list[Place]:
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
