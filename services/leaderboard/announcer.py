"""Announce changed boards to live readers: the latest state of each board, at a bounded rate.

A batch may change ten thousand boards. The announced state is the one at the time of publishing, so each board waits
here at most once: further changes are merged into the one that waits. Nothing survives a restart; the next change of a
board carries its whole top ten.
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
from bellhop.contracts.scores import LeaderboardChanged, TopPlayer
from bellhop.observe.logs import get_logger
from services.leaderboard import metrics
from services.leaderboard.cache import Key
from services.leaderboard.scoring import from_micros
from services.leaderboard.small import AnyRanking
from services.leaderboard.standings import RankingChange

TOP = 10
ANNOUNCED_PER_SECOND = 500
IDLE_SECONDS = 60.0

log = get_logger(__name__)


@dataclass(slots=True)
class _PendingAnnouncement:
    earlier: list[str]
    """Names of the top ten as it was announced last."""
    after: AnyRanking
    changed: int


class Announcer:
    """Publishes `leaderboard.changed`, in the order in which boards changed."""

    def __init__(self, publisher: Publisher, as_of: Callable[[], datetime | None]) -> None:
        self._publisher = publisher
        self._as_of = as_of
        self._waiting: dict[Key, _PendingAnnouncement] = {}
        self.some = asyncio.Event()
        """Set when there is something to announce."""
        self._failing = False
        metrics.ANNOUNCEMENTS.set_function(lambda: len(self._waiting))

    def add(self, changes: list[RankingChange]) -> None:
        """Add changes to be announced."""
        if changes and not self._waiting:  # otherwise the next run is scheduled already
            self.some.set()
        for change in changes:
            waiting = self._waiting.get((change.board, change.season))
            if waiting is None:
                earlier = change.before.top(TOP)
                self._waiting[change.board, change.season] = _PendingAnnouncement(earlier, change.after, change.changed)
            else:
                waiting.after = change.after
                waiting.changed += change.changed

    async def announce(self) -> float:
        """Announce up to `ANNOUNCED_PER_SECOND` boards; return the number of seconds until the next call.

        Boards that could not be published are kept for it, also after a cancellation.
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

    def _put_back(self, key: Key, waiting: _PendingAnnouncement) -> None:
        later = self._waiting.get(key)
        if later is None:
            self._waiting[key] = waiting
        else:
            later.earlier = waiting.earlier
            later.changed += waiting.changed


def message(key: Key, waiting: _PendingAnnouncement, as_of: datetime | None) -> Message:
    """Return the message that announces a change."""
    board, season = key
    top = _top_players(waiting.after)
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


def _top_players(ranking: AnyRanking) -> list[TopPlayer]:
    return [
        TopPlayer(
            position=entry.position,
            rank=entry.rank,
            player=entry.player,
            score=entry.score,
            at=from_micros(entry.at),
        )
        for entry in ranking.page(0, TOP)
    ]
