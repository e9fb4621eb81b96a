"""All rankings of this replica: what readers see, and the one way in which it changes.

    apply       scores -> one transaction -> the next snapshots       (the active puller's replica)
    refresh     what other replicas committed -> the next snapshots   (every replica, every few seconds)
    configure, delete, erase                                          (any replica)

Memory is a cache that is never ahead of the database: snapshots are swapped in after the commit. Each transaction
first compares the database's version with the one in memory and catches up with what others wrote, so it does not
matter which replica applies. All costs grow with what changed, not with how many boards there are.
"""

import asyncio
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import now
from bellhop.contracts.scores import BoardSettings, Operator, Order, Season
from bellhop.sql.database import DatabaseUnavailable
from services.leaderboard import metrics, sums
from services.leaderboard.boards import (
    Result,
    Results,
    collapse,
    current_season,
    current_seasons,
    from_micros,
    join,
    joined,
    split_by_season,
    to_keys,
    to_micros,
)
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import Scores
from services.leaderboard.small import SMALL, SmallRanking, shrunk
from services.leaderboard.store import PATIENT_SECONDS, Head, Reached, ResultRow, Row, Store

Key = tuple[str, str]
"""Board and season."""

AnyRanking = Ranking | SmallRanking

Held = dict[int, dict[str, Result | None]]
"""By ranking and player: the result, or None."""

DEFAULTS = BoardSettings()
"""Of a board that begins with a score."""

PLAYERS_AT_ONCE = 20_000
"""Small rankings are read from the database together, up to about so many players in one statement."""


class UnknownBoard(Exception):
    """Nobody set the board up and no score ever named it."""


class TooManyBoards(Exception):
    """There are as many boards as there may be."""


class BoardInUse(Exception):
    """The board has scores, so its settings stand."""


@dataclass(frozen=True, slots=True)
class Live:
    """A ranking in memory, and the state of the store that it shows."""

    head: Head
    ranking: AnyRanking


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to one ranking."""

    board: str
    season: str
    before: AnyRanking
    after: AnyRanking
    changed: int
    """How many players have another result than before."""


@dataclass(frozen=True, slots=True)
class _Update:
    before: AnyRanking
    head: Head
    rows: list[Row]
    make: Callable[[], AnyRanking]
    """Returns the next snapshot."""
    rests: list[int] = field(default_factory=list)
    """Of a board that adds up: one for each row."""


class Standings:
    """The rankings of all boards."""

    def __init__(self, store: Store, *, past_seasons: int, boards_limit: int = 100_000) -> None:
        """Up to `past_seasons` rankings that are not their boards' current ones stay in memory, last used first.

        `boards_limit`: boards that `configure` and `refused` allow.
        """
        self._store = store
        self._limit = boards_limit
        self._past_seasons = past_seasons
        self._boards: dict[str, BoardSettings] = {}
        self._names: list[str] = []  # of all boards, sorted
        self._deleted: dict[str, int] = {}  # when they were, in microseconds; some of them may have begun again
        self._current: dict[str, Live] = {}  # by board
        self._past: OrderedDict[Key, Live] = OrderedDict()
        self._seen = Reached(-1, 0, None)  # what memory shows
        self._seasons: set[str] = set()  # those that were current when `_seen` was reached
        self._turn = asyncio.Lock()  # one change at a time; readers never take it
        self._reading_past = asyncio.Lock()
        self.loaded = False
        self.failure: str | None = None
        """Why the last look at the database failed; None if it did not."""

    # Reading.

    @property
    def boards(self) -> dict[str, BoardSettings]:
        """The settings of all boards."""
        return self._boards

    @property
    def as_of(self) -> datetime | None:
        """Every score that a gateway answered 202 before is shown; None: not known yet."""
        return from_micros(self._seen.as_of) if self._seen.as_of is not None else None

    def is_hidden(self, board: str) -> bool:
        """Say whether `board` is hidden, or was deleted."""
        settings = self._boards.get(board)
        return settings is None or settings.hidden

    def page(self, after: str, limit: int, *, hidden: bool = False) -> list[str]:
        """Return the names of up to `limit` boards behind `after`, in order; `hidden`: the hidden ones, too."""
        names = islice(self._names, bisect_right(self._names, after), None)
        return list(islice((name for name in names if hidden or not self._boards[name].hidden), limit))

    def current(self, board: str) -> AnyRanking:
        """Return the ranking of the season of now.

        Raises:
            UnknownBoard: there is no such board.
        """
        settings = self._settings(board)
        live = self._find(board, current_season(settings))
        # Everything current is in memory: what is not there has not begun.
        return live.ranking if live is not None else SmallRanking.empty(settings.order)

    async def past(self, board: str, season: str) -> AnyRanking:
        """Return the ranking of any season; the current one as `current` does, others from the database if need be.

        Raises:
            UnknownBoard: there is no such board.
            DatabaseUnavailable: it would have to be read, and cannot.
        """
        settings = self._settings(board)
        if season == current_season(settings):
            return self.current(board)
        async with self._reading_past:  # or a hundred curious readers would read the same ranking a hundred times
            live = self._find(board, season)
            if live is None:
                async with self._turn:  # or the next change would not know of it
                    async with self._store.reading() as connection:
                        await self._catch_up(connection)
                        self._settings(board)  # or it was deleted meanwhile
                        heads = await self._store.heads(connection, [(board, season)])
                        fresh = await self._read(connection, heads)
                    self._swap_in(fresh)
                if not fresh:
                    return SmallRanking.empty(settings.order)
                live = fresh[0]
            if (board, season) in self._past:
                self._past.move_to_end((board, season))
        return live.ranking

    def _settings(self, board: str) -> BoardSettings:
        try:
            return self._boards[board]
        except KeyError:
            raise UnknownBoard(board) from None

    def _find(self, board: str, season: str) -> Live | None:
        live = self._current.get(board)
        if live is not None and live.head.season == season:
            return live
        return self._past.get((board, season))

    # Changing.

    async def refresh(self) -> None:
        """Take over what other replicas committed; the first time, read everything current.

        Raises:
            DatabaseUnavailable: nothing changed here.
        """
        async with self._turn:
            # The first time there is much to read, and after a failure there may be.
            limit = PATIENT_SECONDS if self.failure is not None or not self.loaded else None
            try:
                async with self._store.reading(limit) as connection:
                    await self._catch_up(connection)
            except DatabaseUnavailable as error:
                self.failure = str(error)
                raise
            self.failure = None
            self.loaded = True

    async def apply(self, scores: Scores, until: int | None = None) -> list[Change]:
        """Apply those `scores` that were not applied before; on return they are committed and readable.

        `until`: every score that a gateway answered 202 before is among them, was applied before, or is postponed.

        Raises:
            DatabaseUnavailable: nothing changed, or it is unknown whether it did; applying again is safe.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._catch_up(connection)
                oldest = await self._store.oldest_postponed(connection)
                if oldest is not None and scores.messages:
                    await self._store.end_postponed(connection, scores.messages)
                    oldest = await self._store.oldest_postponed(connection)
                scores = await self._unapplied(connection, scores)
                new_boards = {board: DEFAULTS for board in dict.fromkeys(scores.boards) if board not in self._boards}
                reached, updates = await self._work_out(connection, scores, new_boards)
                if until is not None:
                    until = until if oldest is None else min(until, oldest)
                    reached = replace(reached, as_of=max(until, reached.as_of or 0))
                saving = asyncio.create_task(self._save(connection, reached, new_boards, updates))
                # The new order is made while the database writes: both work outside of the interpreter's lock.
                try:
                    fresh = await asyncio.to_thread(lambda: [_next(update) for update in updates])
                finally:
                    await saving
            self._know(new_boards)
            self._swap_in(fresh)
            self._seen = reached
        return [
            Change(live.head.board, live.head.season, update.before, live.ranking, len(update.rows))
            for update, live in zip(updates, fresh, strict=True)
        ]

    async def postpone(self, message: tuple[str, str], accepted_at: int) -> None:
        """Let `as_of` not pass `accepted_at` until this message is applied or `give_up` is called.

        Raises:
            DatabaseUnavailable: it is not noted.
        """
        await self._store.postpone(message, accepted_at, to_micros(now()))

    async def give_up(self, message: tuple[str, str]) -> None:
        """Let `as_of` pass the scores of this message, which becomes a dead letter.

        Raises:
            DatabaseUnavailable: it is not noted.
        """
        async with self._store.writing() as connection:
            await self._store.end_postponed(connection, [message])

    def refused(self, boards: Iterable[str]) -> set[str]:
        """Return those of `boards` that would be new and for which there is no room."""
        new = [board for board in dict.fromkeys(boards) if board not in self._boards]
        return set(new[max(0, self._limit - len(self._boards)) :])

    async def configure(self, board: str, settings: BoardSettings) -> bool:
        """Set up a board; say whether it is a new one.

        Raises:
            BoardInUse: it has scores, which other settings would have counted differently.
            TooManyBoards: it would be a new one.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._catch_up(connection)
                known = self._boards.get(board)
                if known == settings:
                    return False
                if known is None and len(self._boards) >= self._limit:
                    raise TooManyBoards(board)
                counts_alike = known is not None and known.model_copy(update={"hidden": settings.hidden}) == settings
                if not counts_alike and any(head.players for head in await self._store.heads_of(connection, board)):
                    raise BoardInUse(board)
                reached = replace(self._seen, version=self._seen.version + 1)
                await self._store.save_boards(connection, {board: settings}, reached.version)
                await self._store.save_progress(connection, reached)
            self._know({board: settings})
            self._seen = reached
        return known is None

    async def delete(self, board: str) -> None:
        """Delete a board with all its seasons; done already is fine. Scores that are accepted later begin it again.

        Raises:
            UnknownBoard: there is no such board, and was none lately.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._catch_up(connection)
                if board not in self._boards:
                    if board in self._deleted:
                        return
                    raise UnknownBoard(board)
                reached = replace(self._seen, version=self._seen.version + 1)
                at = await self._store.delete_board(connection, board, to_micros(now()), reached.version)
                await self._store.save_progress(connection, reached)
            self._forget({board: at})
            self._seen = reached

    async def erase(self, board: str, player: str) -> int:
        """Take a player out of all seasons of `board`; return of how many.

        Raises:
            UnknownBoard: there is no such board.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                await self._catch_up(connection)
                self._settings(board)
                heads = {head.id: head for head in await self._store.heads_of(connection, board)}
                erased = await self._store.erase(connection, list(heads), player)
                if not erased:
                    return 0
                reached = replace(self._seen, version=self._seen.version + 1)
                after = [_without_one(heads[id], reached.version) for id in erased]
                await self._store.save_heads(connection, after)
                await self._store.save_progress(connection, reached)
            known = [(head, self._find(board, head.season)) for head in after]
            self._swap_in([Live(head, live.ranking.without(player)) for head, live in known if live is not None])
            self._seen = reached
        return len(erased)

    async def _unapplied(self, connection: AsyncConnection, scores: Scores) -> Scores:
        """Claim the messages and the scores that carry an id, and return the scores that count."""
        if not len(scores):
            return scores
        at = to_micros(now())
        new = await self._store.claim_messages(connection, scores.messages, at)
        # Taken out as they come up: the second copy within one batch finds nothing.
        fresh = np.array([_take(new, message) for message in scores.messages])
        scores = self._without_late(scores.only(fresh[scores.message]))
        named = [(index, id) for index, id in enumerate(scores.ids) if id is not None]
        if not named:
            return scores
        new = await self._store.claim_scores(connection, [(scores.boards[index], id) for index, id in named], at)
        counts = np.ones(len(scores), np.bool_)
        for index, id in named:
            counts[index] = _take(new, (scores.boards[index], id))
        return scores.only(counts)

    def _without_late(self, scores: Scores) -> Scores:
        """Leave out what was accepted before its board was deleted."""
        deleted = {board: at for board in set(scores.boards) if (at := self._deleted.get(board)) is not None}
        if not deleted:
            return scores
        accepted = scores.accepted[scores.message].tolist()
        counts = [at > deleted.get(board, -1) for board, at in zip(scores.boards, accepted, strict=True)]
        metrics.LATE.inc(counts.count(False))
        return scores.only(np.array(counts, np.bool_))

    async def _work_out(
        self, connection: AsyncConnection, scores: Scores, new_boards: dict[str, BoardSettings]
    ) -> tuple[Reached, list[_Update]]:
        """Return what `scores` change, and how far the database will be then. Seasons that are new are begun."""
        parts = {
            (board, season): indices[chosen]
            for board, indices in _by_board(scores.boards)
            for season, chosen in split_by_season(
                scores.at[indices], (new_boards.get(board) or self._boards[board]).season
            ).items()
        }
        lives = {key: live for key in parts if (live := self._find(*key)) is not None}
        unknown = [key for key in parts if key not in lives]
        heads = await self._store.heads(connection, [key for key in unknown if key[0] not in new_boards])
        lives |= {(live.head.board, live.head.season): live for live in await self._read(connection, heads)}
        reached = replace(self._seen, version=self._seen.version + 1)
        for board, season in unknown:
            if (board, season) not in lives:
                reached = replace(reached, last_ranking=reached.last_ranking + 1)
                head = Head(reached.last_ranking, board, season, players=0, version=0, erasures=0)
                order = (new_boards.get(board) or self._boards[board]).order
                lives[board, season] = Live(head, SmallRanking.empty(order))
        settings = {board: new_boards.get(board) or self._boards[board] for board, _ in parts}
        added = {key: lives[key] for key in parts if settings[key[0]].operator is Operator.SUM}
        held, doubtful = await asyncio.to_thread(_held, added, scores, parts)
        rests = await self._store.rests(connection, doubtful)
        updates = await asyncio.to_thread(_updates, lives, settings, scores, parts, reached.version, held, rests)
        return (reached if updates else self._seen), updates

    async def _save(
        self,
        connection: AsyncConnection,
        reached: Reached,
        new_boards: dict[str, BoardSettings],
        updates: list[_Update],
    ) -> None:
        if not updates:
            if reached != self._seen:
                await self._store.save_progress(connection, reached)
            return
        await self._store.save_boards(connection, new_boards, reached.version)
        await self._store.save_heads(connection, [update.head for update in updates])
        rows = [row for update in updates if not update.rests for row in update.rows]
        await self._store.save_results(connection, rows)
        totals = [
            (*row, rest)
            for update in updates
            if update.rests
            for row, rest in zip(update.rows, update.rests, strict=True)
        ]
        await self._store.save_sums(connection, totals)
        await self._store.save_progress(connection, reached)

    # Catching up.

    async def _catch_up(self, connection: AsyncConnection) -> None:
        """Bring memory to what `connection` sees. Only what others committed is read: usually nothing."""
        reached = await self._store.progress(connection)
        seasons = set(current_seasons())
        heads: dict[int, Head] = {}
        if seasons != self._seasons:  # the first time, and once a day
            heads = {head.id: head for head in await self._store.heads_in(connection, seasons - self._seasons)}
        if reached.version == self._seen.version and not heads:
            self._seen, self._seasons = reached, seasons
            return
        deleted = await self._store.deleted_boards(connection, self._seen.version)
        boards = await self._store.boards(connection, self._seen.version)
        if self._seen.version >= 0:
            heads |= {head.id: head for head in await self._store.heads_since(connection, self._seen.version)}
        self._forget(deleted)
        self._know(boards)
        wanted = [head for head in heads.values() if self._is_wanted(head)]
        self._swap_in(await self._read(connection, wanted))
        self._seen, self._seasons = reached, seasons

    def _is_wanted(self, head: Head) -> bool:
        """Say whether the ranking belongs in memory and is not there as it is in the database."""
        settings = self._boards.get(head.board)
        if settings is None:
            return False
        live = self._find(head.board, head.season)
        if live is None:
            return head.season == current_season(settings)
        return live.head.version != head.version

    async def _read(self, connection: AsyncConnection, heads: Iterable[Head]) -> list[Live]:
        """Read rankings: of those in memory what is new, others whole."""
        fresh, groups = [], _Groups()
        for head in heads:
            live = self._find(head.board, head.season)
            if live is not None and live.head.erasures != head.erasures:
                live = None
            order = self._boards[head.board].order
            # What is in memory shows everything up to `_seen`.
            since = self._seen.version if live is not None else -1
            if head.players > SMALL:
                fresh.append(await self._read_large(connection, head, live, order, since))
            else:
                groups.add(head, live, since)
        for since, group in groups:
            rows = await self._store.results_of(connection, [head.id for head, _ in group], since)
            fresh += await asyncio.to_thread(self._read_small, group, rows)
        return fresh

    def _read_small(self, group: list[tuple[Head, Live | None]], rows: list[ResultRow]) -> list[Live]:
        lines: dict[int, list[ResultRow]] = {}
        for row in rows:
            lines.setdefault(row[0], []).append(row)
        fresh = []
        for head, live in group:
            order = self._boards[head.board].order
            sign = 1.0 if order is Order.ASCENDING else -1.0
            new = {player: (sign * score + 0.0, at) for _, player, score, at in lines.get(head.id, ())}
            ranking = live.ranking if live is not None else SmallRanking.empty(order)
            fresh.append(Live(head, _with_few(ranking, new)))
        return fresh

    async def _read_large(
        self, connection: AsyncConnection, head: Head, live: Live | None, order: Order, since: int
    ) -> Live:
        ranking = Ranking.empty(order, head.players) if live is None else _large(live.ranking)
        # The names of a ranking that is not in memory yet are all new.
        slots_of = ranking.names.add if live is not None else ranking.names.add_new
        # Long arrays that grow, instead of many small ones: those would leave the heap in pieces.
        slots, scores, at = array("i"), array("d"), array("q")
        async for page in self._store.results(connection, head.id, since):
            slots.frombytes(slots_of(page.players).tobytes())
            scores.extend(page.scores)
            at.extend(page.at)
        if slots:
            keys = to_keys(np.frombuffer(scores), order)
            results = Results(np.frombuffer(slots, np.int32), keys, np.frombuffer(at, np.int64), np.arange(len(slots)))
            ranking = await asyncio.to_thread(ranking.with_results, results)
        return Live(head, ranking)

    def _forget(self, deleted: dict[str, int]) -> None:
        """Show no more of boards that were deleted."""
        self._deleted |= deleted
        gone = {board for board in deleted if self._boards.pop(board, None) is not None}
        if not gone:
            return
        self._names = [name for name in self._names if name not in gone]
        for board in gone:
            self._current.pop(board, None)
        for key in [key for key in self._past if key[0] in gone]:
            del self._past[key]

    def _know(self, boards: dict[str, BoardSettings]) -> None:
        """Show the settings of `boards`."""
        new = [board for board in boards if board not in self._boards]
        self._boards.update(boards)
        if new:
            self._names = sorted(self._names + new)  # a copy: a reader may hold the other one
        for board, settings in boards.items():
            live = self._current.get(board)
            if live is not None and live.ranking.order is not settings.order:  # it has no players, or could not change
                self._current[board] = Live(live.head, SmallRanking.empty(settings.order))
        for key in [key for key in self._past if key[0] in boards]:
            del self._past[key]

    def _swap_in(self, fresh: Iterable[Live]) -> None:
        """Show what was committed."""
        seasons: dict[Season, str] = {}
        for live in fresh:
            head = live.head
            settings = self._boards[head.board]
            season = seasons.get(settings.season)
            if season is None:
                season = seasons[settings.season] = current_season(settings)
            if head.season != season:
                self._past[head.board, head.season] = live
                self._past.move_to_end((head.board, head.season))
                continue
            before = self._current.get(head.board)
            self._current[head.board] = live
            self._past.pop((head.board, head.season), None)
            if before is not None and before.head.season != season:
                self._past[head.board, before.head.season] = before
        while len(self._past) > self._past_seasons:
            self._past.popitem(last=False)


class _Groups:
    """Small rankings, put together for few statements: those that are read from the same version on."""

    def __init__(self) -> None:
        self._groups: dict[int, list[list[tuple[Head, Live | None]]]] = {}
        self._players: dict[int, int] = {}

    def add(self, head: Head, live: Live | None, since: int) -> None:
        groups = self._groups.setdefault(since, [[]])
        self._players[since] = self._players.get(since, 0) + head.players + 10
        if self._players[since] > PLAYERS_AT_ONCE:
            groups.append([])
            self._players[since] = head.players
        groups[-1].append((head, live))

    def __iter__(self) -> Iterator[tuple[int, list[tuple[Head, Live | None]]]]:
        return ((since, group) for since, groups in self._groups.items() for group in groups if group)


def _without_one(head: Head, version: int) -> Head:
    return replace(head, players=head.players - 1, version=version, erasures=head.erasures + 1)


def _take(keys: set[tuple[str, str]], key: tuple[str, str]) -> bool:
    if key in keys:
        keys.remove(key)
        return True
    return False


def _by_board(boards: list[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Return each board with the indices of its scores."""
    names = list(dict.fromkeys(boards))
    if len(names) <= 1:
        return [(name, np.arange(len(boards))) for name in names]
    numbers = {name: number for number, name in enumerate(names)}
    number = np.array([numbers[board] for board in boards])
    sequence = np.argsort(number, kind="stable")
    edges = np.flatnonzero(np.diff(number[sequence])) + 1
    return list(zip(names, np.split(sequence, edges), strict=True))


def _updates(
    lives: dict[Key, Live],
    settings: dict[str, BoardSettings],
    scores: Scores,
    parts: dict[Key, NDArray[np.intp]],
    version: int,
    held: Held,
    rests: dict[tuple[int, str], int],
) -> list[_Update]:
    """Work out what `scores` change; `parts` says which of them fall into which ranking.

    Args:
        lives: the rankings.
        settings: of their boards.
        scores: what to apply.
        parts: the indices of the scores that fall into each ranking.
        version: of this change.
        held: what the players have where scores are added up.
        rests: those of their totals that are not 0.
    """
    values: list[float] = []
    at: list[int] = []
    updates = []
    for key, indices in parts.items():
        live = lives[key]
        ranking = live.ranking
        adds = settings[key[0]].operator is Operator.SUM
        if adds or (isinstance(ranking, SmallRanking) and len(ranking) + len(indices) <= SMALL):
            if not values:  # once for all: a look at one number of an array costs more than the whole ranking
                values, at = scores.scores.tolist(), scores.at.tolist()
            few = [(scores.players[index], values[index], at[index]) for index in indices.tolist()]
            if adds:
                update = _update_sums(live, settings[key[0]], few, version, held[live.head.id], rests)
            else:
                update = _update_small(live.head, _small(ranking), settings[key[0]], few, version)
        else:
            update = _update(live.head, _large(ranking), settings[key[0]], scores, indices, version)
        if update.rows:
            updates.append(update)
    return updates


def _update(
    head: Head, ranking: Ranking, settings: BoardSettings, scores: Scores, indices: NDArray[np.intp], version: int
) -> _Update:
    players = scores.players
    if len(indices) != len(players):
        players = [players[index] for index in indices.tolist()]
    slots = ranking.names.add(players)
    keys = to_keys(scores.scores[indices], settings.order)
    collapsed = collapse(settings.operator, slots, keys, scores.at[indices])
    known, held_keys, held_at = ranking.held(collapsed.slots)
    results = join(settings.operator, collapsed, known, held_keys, held_at)
    newcomers = len(results.slots) - int(ranking.known(results.slots).sum())
    names = [players[index] for index in results.example.tolist()]
    values = to_keys(results.keys, settings.order).tolist()
    at = results.at.tolist()
    in_order = sorted(range(len(names)), key=names.__getitem__)
    rows = [(head.id, names[index], values[index], at[index], version) for index in in_order]
    return _Update(ranking, _counted(head, newcomers, version), rows, partial(ranking.with_results, results))


def _update_small(
    head: Head, ranking: SmallRanking, settings: BoardSettings, scores: list[tuple[str, float, int]], version: int
) -> _Update:
    sign = 1.0 if settings.order is Order.ASCENDING else -1.0
    results: dict[str, Result] = {}
    newcomers = 0
    for player, score, at in scores:
        held = results.get(player) or ranking.result(player)
        result = joined(settings.operator, held, (sign * score + 0.0, at))
        if result != held:
            newcomers += held is None
            results[player] = result
    rows = [(head.id, player, sign * key + 0.0, at, version) for player, (key, at) in sorted(results.items())]
    return _Update(ranking, _counted(head, newcomers, version), rows, partial(ranking.with_results, results))


def _held(
    lives: dict[Key, Live], scores: Scores, parts: dict[Key, NDArray[np.intp]]
) -> tuple[Held, list[tuple[int, str]]]:
    """Return what the players of `scores` have in each ranking, and whose total that does not tell."""
    held: Held = {}
    doubtful = []
    for key, live in lives.items():
        indices = parts[key]
        id_, result = live.head.id, live.ranking.result
        held[id_] = {player: result(player) for player in {scores.players[index] for index in indices.tolist()}}
        doubtful += [(id_, player) for player, one in held[id_].items() if one is not None and not sums.is_told_by(one)]
    return held, doubtful


def _update_sums(
    live: Live,
    settings: BoardSettings,
    scores: list[tuple[str, float, int]],
    version: int,
    held: dict[str, Result | None],
    rests: dict[tuple[int, str], int],
) -> _Update:
    head, sign = live.head, 1.0 if settings.order is Order.ASCENDING else -1.0
    totals = {
        player: sums.total_of(one, rests.get((head.id, player), 0)) for player, one in held.items() if one is not None
    }
    before = dict(totals)
    for player, score, at in scores:
        totals[player] = sums.add(totals.get(player), sign * score, at)
    changed = {player: sums.shown(total) for player, total in totals.items() if total != before.get(player)}
    names = sorted(changed)
    rows = [(head.id, name, sign * changed[name][0][0] + 0.0, changed[name][0][1], version) for name in names]
    results = {name: (changed[name][0][0] + 0.0, changed[name][0][1]) for name in names}
    newcomers = sum(name not in before for name in names)
    make = partial(_with_results, live.ranking, results)
    return _Update(live.ranking, _counted(head, newcomers, version), rows, make, [changed[name][1] for name in names])


def _with_results(ranking: AnyRanking, results: dict[str, Result]) -> AnyRanking:
    if isinstance(ranking, SmallRanking) and len(ranking) + len(results) <= SMALL:
        return ranking.with_results(results)
    large = _large(ranking)
    slots = large.names.add(list(results))
    keys = np.array([key for key, _ in results.values()], np.float64)
    at = np.array([moment for _, moment in results.values()], np.int64)
    return large.with_results(Results(slots, keys, at, np.arange(len(slots))))


def _small(ranking: AnyRanking) -> SmallRanking:
    return ranking if isinstance(ranking, SmallRanking) else shrunk(ranking)


def _counted(head: Head, newcomers: int, version: int) -> Head:
    return Head(head.id, head.board, head.season, head.players + newcomers, version, head.erasures)


def _next(update: _Update) -> Live:
    ranking = update.make()
    if isinstance(ranking, Ranking) and len(ranking) <= SMALL:
        ranking = shrunk(ranking)
    return Live(update.head, ranking)


def _large(ranking: AnyRanking) -> Ranking:
    return ranking if isinstance(ranking, Ranking) else ranking.enlarged()


def _with_few(ranking: AnyRanking, new: dict[str, Result]) -> SmallRanking:
    """Return a ranking of at most `SMALL` players with new results."""
    small = _small(ranking)
    return small.with_results(new) if new else small
