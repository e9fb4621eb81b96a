"""The cache of rankings: settings of all boards, all current rankings, and the past rankings that were used last.

Nothing here waits or reads the database; `standings.py` and `loading.py` put in what is committed. Rankings are
immutable snapshots, so readers need no lock.
"""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from bellhop.contracts.scores import BoardSettings, Season
from services.leaderboard.errors import UnknownBoard
from services.leaderboard.scoring import current_season
from services.leaderboard.small import AnyRanking, SmallRanking
from services.leaderboard.store import RankingRecord, Reached

Key = tuple[str, str]
"""Board and season."""


@dataclass(frozen=True, slots=True)
class CachedRanking:
    """A ranking in memory, and the record of the database that it shows."""

    record: RankingRecord
    ranking: AnyRanking


class RankingCache:
    """Boards and rankings in memory. Never ahead of the database."""

    def __init__(self, past_seasons: int) -> None:
        """`past_seasons`: rankings of past seasons that are kept, at most; the least recently used goes first."""
        self.boards: dict[str, BoardSettings] = {}
        """Settings of all boards."""
        self.deleted: dict[str, int] = {}
        """Deleted boards, with the time in microseconds since 1970. Some of them may have been created again."""
        self.reached = Reached(-1, 0, None)
        """The state of the database that memory shows."""
        self.seasons: set[str] = set()
        """The seasons that were current at that state."""
        self._past_seasons = past_seasons
        self._names: list[str] = []  # of all boards, sorted
        self._current: dict[str, CachedRanking] = {}  # by board
        self._past: OrderedDict[Key, CachedRanking] = OrderedDict()

    def page(self, after: str, limit: int, *, hidden: bool) -> list[str]:
        """Return the names of up to `limit` boards behind `after`, in order; `hidden`: include hidden boards."""
        names = islice(self._names, bisect_right(self._names, after), None)
        return list(islice((name for name in names if hidden or not self.boards[name].hidden), limit))

    def settings(self, board: str) -> BoardSettings:
        """Return the settings of a board.

        Raises:
            UnknownBoard: there is no such board.
        """
        try:
            return self.boards[board]
        except KeyError:
            raise UnknownBoard(board) from None

    def find(self, board: str, season: str) -> CachedRanking | None:
        """Return the ranking, or None if it is not in memory."""
        cached = self._current.get(board)
        if cached is not None and cached.record.season == season:
            return cached
        return self._past.get((board, season))

    def touch(self, board: str, season: str) -> None:
        """Mark a past ranking as used; does nothing for others."""
        if (board, season) in self._past:
            self._past.move_to_end((board, season))

    def remove_boards(self, deleted: dict[str, int]) -> None:
        """Remove deleted boards and their rankings; `deleted`: times in microseconds since 1970."""
        self.deleted |= deleted
        removed = {board for board in deleted if self.boards.pop(board, None) is not None}
        if not removed:
            return
        self._names = [name for name in self._names if name not in removed]
        for board in removed:
            self._current.pop(board, None)
        self._drop_past(removed)

    def set_boards(self, boards: dict[str, BoardSettings]) -> None:
        """Add boards, or replace their settings."""
        new = [board for board in boards if board not in self.boards]
        self.boards.update(boards)
        if new:
            self._names = sorted(self._names + new)  # a copy: a reader may be iterating over the previous list
        for board, settings in boards.items():
            cached = self._current.get(board)
            if cached is not None and cached.ranking.order is not settings.order:  # only an empty ranking can change it
                self._current[board] = CachedRanking(cached.record, SmallRanking.empty(settings.order))
        self._drop_past(boards)

    def put(self, rankings: Iterable[CachedRanking]) -> None:
        """Add or replace rankings; what is put in must be committed."""
        seasons: dict[Season, str] = {}
        for cached in rankings:
            record = cached.record
            settings = self.boards[record.board]
            season = seasons.get(settings.season)
            if season is None:
                season = seasons[settings.season] = current_season(settings)
            if record.season != season:
                self._past[record.board, record.season] = cached
                self._past.move_to_end((record.board, record.season))
                continue
            before = self._current.get(record.board)
            self._current[record.board] = cached
            self._past.pop((record.board, record.season), None)
            if before is not None and before.record.season != season:
                self._past[record.board, before.record.season] = before
        while len(self._past) > self._past_seasons:
            self._past.popitem(last=False)

    def _drop_past(self, boards: Iterable[str]) -> None:
        named = set(boards)
        for key in [key for key in self._past if key[0] in named]:
            del self._past[key]
