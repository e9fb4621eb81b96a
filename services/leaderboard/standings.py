"""All rankings of this replica: what readers see, and the one way in which it changes.

    apply       scores -> one transaction -> the next snapshots       (the active puller's replica)
    refresh     what other replicas committed -> the next snapshots   (every replica, every few seconds)
    configure, erase                                                  (any replica)

Memory is a cache that is never ahead of the database: snapshots are swapped in after the commit. Each transaction
first compares versions and catches up with what others wrote, so it does not matter which replica applies.
"""

import asyncio
from array import array
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.base import now
from bellhop.contracts.scores import BoardSettings
from bellhop.sql.database import DatabaseAway
from services.leaderboard.boards import (
    Results,
    collapse,
    current_season,
    current_seasons,
    join,
    split_by_season,
    to_keys,
    to_micros,
)
from services.leaderboard.ranking import Ranking
from services.leaderboard.scores import Scores
from services.leaderboard.store import Head, Row, Store

Key = tuple[str, str]
"""Board and season."""


class UnknownBoard(Exception):
    """Nobody set the board up and no score ever named it."""


class BoardInUse(Exception):
    """The board has scores, so its settings stand."""


@dataclass(frozen=True, slots=True)
class Live:
    """A ranking in memory, and the state of the store that it shows."""

    head: Head
    settings: BoardSettings
    ranking: Ranking


@dataclass(frozen=True, slots=True)
class Change:
    """What one commit did to one ranking."""

    board: str
    season: str
    before: Ranking
    after: Ranking
    changed: int
    """How many players have another result than before."""


@dataclass(frozen=True, slots=True)
class _Update:
    live: Live
    results: Results
    head: Head
    rows: list[Row]


class Standings:
    """The rankings of all boards."""

    def __init__(self, store: Store, *, past_seasons: int) -> None:
        """Up to `past_seasons` rankings that are not their boards' current ones stay in memory, last used first."""
        self._store = store
        self._past_seasons = past_seasons
        self._boards: dict[str, BoardSettings] = {}
        self._live: OrderedDict[Key, Live] = OrderedDict()
        self._turn = asyncio.Lock()  # one change at a time; readers never take it
        self._reading_past = asyncio.Lock()
        self.loaded = False
        self.trouble: str | None = None
        """Why the last look at the database failed; None if it did not."""

    # Reading.

    @property
    def boards(self) -> dict[str, BoardSettings]:
        """The settings of all boards."""
        return self._boards

    def current(self, board: str) -> Ranking:
        """Return the ranking of the season of now.

        Raises:
            UnknownBoard: there is no such board.
        """
        settings = self._settings(board)
        live = self._live.get((board, current_season(settings)))
        # Everything current is in memory: what is not there has not begun.
        return live.ranking if live is not None else Ranking.empty(settings.order)

    async def past(self, board: str, season: str) -> Ranking:
        """Return the ranking of any season; the current one as `current` does, others from the database if need be.

        Raises:
            UnknownBoard: there is no such board.
            DatabaseAway: it would have to be read, and cannot.
        """
        settings = self._settings(board)
        if season == current_season(settings):
            return self.current(board)
        async with self._reading_past:  # or a hundred curious readers would read the same ranking a hundred times
            live = self._live.get((board, season))
            if live is None:
                async with self._store.reading() as connection:
                    head = await self._store.head(connection, board, season)
                    if head is None:
                        return Ranking.empty(settings.order)
                    live = await self._read(connection, head, settings)
                # A late score may have brought it in meanwhile. If ours is the older, versions tell the next change.
                live = self._live.setdefault((board, season), live)
            self._live.move_to_end((board, season))
            self._let_go()
        return live.ranking

    def _settings(self, board: str) -> BoardSettings:
        try:
            return self._boards[board]
        except KeyError:
            raise UnknownBoard(board) from None

    # Changing.

    async def refresh(self) -> None:
        """Take over what other replicas committed; the first time, read everything current.

        Raises:
            DatabaseAway: nothing changed here.
        """
        async with self._turn:
            try:
                async with self._store.reading() as connection:
                    boards = await self._store.boards(connection)
                    in_memory = [live.head.id for live in self._live.values()]
                    heads = await self._store.heads_in(connection, current_seasons(), in_memory)
                    fresh = [await self._caught_up(connection, head, boards[head.board]) for head in heads.values()]
            except DatabaseAway as error:
                self.trouble = str(error)
                raise
            self.trouble = None
            self._swap_in(boards, fresh)
            self.loaded = True

    async def apply(self, scores: Scores) -> list[Change]:
        """Apply those `scores` that were not applied before; on return they are committed and readable.

        Raises:
            DatabaseAway: nothing changed, or it is unknown whether it did; applying again is safe.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                scores = await self._unapplied(connection, scores)
                names = dict.fromkeys(scores.boards)
                boards = await self._store.boards(connection, names)
                updates = await self._work_out(connection, scores, boards)
                saving = asyncio.create_task(self._save(connection, updates))
                # The new order is made while the database writes: both work outside of the interpreter's lock.
                try:
                    fresh = await asyncio.to_thread(lambda: [_next(update) for update in updates])
                finally:
                    await saving
            self._swap_in(boards, fresh)
        return [
            Change(live.head.board, live.head.season, update.live.ranking, live.ranking, len(update.rows))
            for update, live in zip(updates, fresh, strict=True)
            if update.rows
        ]

    async def configure(self, board: str, settings: BoardSettings) -> bool:
        """Set up a board; say whether it is a new one.

        Raises:
            BoardInUse: it has scores, which other settings would have counted differently.
        """
        async with self._turn:
            async with self._store.writing() as connection:
                known = (await self._store.boards(connection, [board])).get(board)
                if known != settings:
                    heads = await self._store.heads_of(connection, [board])
                    if any(head.players for head in heads.values()):
                        raise BoardInUse(board)
                    await self._store.save_board(connection, board, settings)
            self._swap_in({board: settings}, [])
        return known is None

    async def erase(self, board: str, player: str) -> int:
        """Take a player out of all seasons of `board`; return of how many.

        Raises:
            UnknownBoard: there is no such board.
        """
        self._settings(board)
        async with self._turn:
            fresh = []
            async with self._store.writing() as connection:
                boards = await self._store.boards(connection, [board])
                erased = 0
                for key, head in (await self._store.heads_of(connection, [board])).items():
                    live = await self._caught_up(connection, head, boards[board]) if key in self._live else None
                    if not await self._store.erase(connection, head.id, player):
                        continue
                    erased += 1
                    after = replace(
                        head, players=head.players - 1, version=head.version + 1, erasures=head.erasures + 1
                    )
                    await self._store.save_head(connection, after)
                    if live is not None:
                        fresh.append(replace(live, head=after, ranking=live.ranking.without(player)))
            self._swap_in(boards, fresh)
        return erased

    async def _unapplied(self, connection: AsyncConnection, scores: Scores) -> Scores:
        """Claim the messages and the scores that carry an id, and return the scores that count."""
        at = to_micros(now())
        new = await self._store.claim_messages(connection, scores.messages, at)
        # Taken out as they come up: the second copy within one batch finds nothing.
        fresh = np.array([_take(new, message) for message in scores.messages])
        scores = scores.only(fresh[scores.message])
        named = [(index, id) for index, id in enumerate(scores.ids) if id is not None]
        if not named:
            return scores
        new = await self._store.claim_scores(connection, [(scores.boards[index], id) for index, id in named], at)
        counts = np.ones(len(scores), np.bool_)
        for index, id in named:
            counts[index] = _take(new, (scores.boards[index], id))
        return scores.only(counts)

    async def _work_out(
        self, connection: AsyncConnection, scores: Scores, boards: dict[str, BoardSettings]
    ) -> list[_Update]:
        """Return what `scores` change. Boards and seasons that are named for the first time are made."""
        parts: list[tuple[Live, NDArray[np.intp]]] = []
        heads = await self._store.heads_of(connection, dict.fromkeys(scores.boards))
        for board, indices in _by_board(scores.boards):
            if board not in boards:
                boards[board] = BoardSettings()
                await self._store.save_board(connection, board, boards[board])
            for season, chosen in split_by_season(scores.at[indices], boards[board].season).items():
                head = heads.get((board, season)) or await self._store.new_head(connection, board, season)
                parts.append((await self._caught_up(connection, head, boards[board]), indices[chosen]))
        return await asyncio.to_thread(lambda: [_update(live, scores, indices) for live, indices in parts])

    async def _save(self, connection: AsyncConnection, updates: list[_Update]) -> None:
        rows = [row for update in updates for row in update.rows]
        if rows:
            await self._store.save_results(connection, rows)
        for update in updates:
            if update.rows:
                await self._store.save_head(connection, update.head)

    async def _caught_up(self, connection: AsyncConnection, head: Head, settings: BoardSettings) -> Live:
        """Return the ranking as `connection` sees it: from memory, with what others wrote since, or read anew."""
        live = self._live.get((head.board, head.season))
        if live is None or live.settings != settings or live.head.erasures != head.erasures:
            return await self._read(connection, head, settings)
        if live.head.version == head.version:
            return live
        return await self._read(connection, head, settings, live)

    async def _read(
        self, connection: AsyncConnection, head: Head, settings: BoardSettings, known: Live | None = None
    ) -> Live:
        """Read a ranking, or of one that is `known` only what is new."""
        ranking = known.ranking if known is not None else Ranking.empty(settings.order, head.players)
        slots_of = ranking.names.add if known is not None else ranking.names.add_new
        # Long arrays that grow, instead of many small ones: those would leave the heap in pieces.
        slots, scores, at = array("i"), array("d"), array("q")
        async for page in self._store.results(connection, head.id, known.head.version if known is not None else 0):
            slots.frombytes(slots_of(page.players).tobytes())
            scores.extend(page.scores)
            at.extend(page.at)
        if slots:
            keys = to_keys(np.frombuffer(scores), settings.order)
            results = Results(np.frombuffer(slots, np.int32), keys, np.frombuffer(at, np.int64), np.arange(len(slots)))
            ranking = await asyncio.to_thread(ranking.with_results, results)
        return Live(head, settings, ranking)

    def _swap_in(self, boards: dict[str, BoardSettings], fresh: list[Live]) -> None:
        """Show what was committed."""
        self._boards.update(boards)
        for live in fresh:
            self._live[live.head.board, live.head.season] = live
            self._live.move_to_end((live.head.board, live.head.season))
        self._let_go()

    def _let_go(self) -> None:
        """Drop the past seasons that were not used for longest."""
        current = set(current_seasons())
        past = [key for key in self._live if key[1] not in current]
        for key in past[: max(0, len(past) - self._past_seasons)]:
            del self._live[key]


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


def _update(live: Live, scores: Scores, indices: NDArray[np.intp]) -> _Update:
    """Work out what some scores change in their ranking."""
    ranking, settings, head = live.ranking, live.settings, live.head
    players = scores.players
    if len(indices) != len(players):
        players = [players[index] for index in indices.tolist()]
    slots = ranking.names.add(players)
    keys = to_keys(scores.scores[indices], settings.order)
    collapsed = collapse(settings.operator, slots, keys, scores.at[indices])
    known, held_keys, held_at = ranking.held(collapsed.slots)
    results = join(settings.operator, collapsed, known, held_keys, held_at)
    if not len(results.slots):
        return _Update(live, results, head, [])
    newcomers = len(results.slots) - int(ranking.known(results.slots).sum())
    head = replace(head, players=head.players + newcomers, version=head.version + 1)
    names = [players[index] for index in results.example.tolist()]
    values = to_keys(results.keys, settings.order).tolist()
    at = results.at.tolist()
    in_order = sorted(range(len(names)), key=names.__getitem__)
    rows = [(head.id, names[index], values[index], at[index], head.version) for index in in_order]
    return _Update(live, results, head, rows)


def _next(update: _Update) -> Live:
    live = update.live
    return Live(update.head, live.settings, live.ranking.with_results(update.results))
