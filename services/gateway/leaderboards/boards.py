"""Quotas for new boards, checked before scores are accepted.

A key that may write scores, and nothing else, would otherwise fill the leaderboard's memory with names.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from time import monotonic

from bellhop.observe.logs import get_logger
from bellhop.sql.database import DatabaseUnavailable
from bellhop.web.auth import Caller, Scope
from bellhop.web.peer import Peer, PeerUnavailable
from bellhop.web.problems import Problem, unavailable
from services.gateway.leaderboards.board_names import BoardNames, Quotas, RemainingQuota
from services.gateway.settings import Settings

KNOWN_SECONDS = 60.0
"""How long after its deletion a board may be created again uncounted, by a gateway that did not delete it."""
KNOWN_NAMES = 200_000
PAGE = 1000
LATER_SECONDS = 5.0
IDLE_SECONDS = 86_400.0

log = get_logger(__name__)


class Boards:
    """Checks the boards of scores. Known boards cost no query."""

    def __init__(self, names: BoardNames, settings: Settings, leaderboard: Peer) -> None:
        self._names = names
        self._settings = settings
        self._leaderboard = leaderboard
        self._known: dict[str, float] = {}
        self.complete = False
        """Whether the boards that the leaderboard had before are known, too."""

    async def admit(self, caller: Caller, names: Iterable[str]) -> None:
        """Check that `caller` may write scores to the boards `names`; new ones are created.

        For callers that may configure boards only `boards_limit` applies.

        Raises:
            Problem: 429 or 422, which names a board, where a quota is used up; 503 where that is not known yet.
            DatabaseUnavailable: some names are unknown to this process, and cannot be read.
        """
        current = monotonic()
        unknown = [name for name in dict.fromkeys(names) if self._known.get(name, 0.0) < current]
        if not unknown:
            return
        try:
            known = await self._names.known(unknown)
            new = [name for name in unknown if name not in known]
            if new:
                await self._begin(caller, new)
        except DatabaseUnavailable:
            if all(name in self._known for name in unknown):
                return  # scores for existing boards need no database
            raise
        self._remember(unknown)

    async def _begin(self, caller: Caller, names: list[str]) -> None:
        manages = caller.may(Scope.LEADERBOARDS_WRITE)
        settings = self._settings
        quotas = Quotas(
            settings.boards_limit if manages else settings.boards_per_hour,
            settings.boards_limit if manages else settings.boards_per_key,
            settings.boards_limit,
        )
        new, remaining = await self._names.create(names, caller.name, quotas)
        if remaining is not None:
            if not self.complete:
                raise unavailable(f"Whether {new[0]} is a new board is not known until the leaderboard answers.")
            raise self._refusal(caller, new, remaining)
        if new:  # else another request created them in between
            log.info("created boards", caller=caller.name, count=len(new), first=new[0])

    def _refusal(self, caller: Caller, new: list[str], remaining: RemainingQuota) -> Problem:
        settings = self._settings
        if remaining.together < len(new):
            refused = new[max(0, remaining.together)]
            return Problem(
                422,
                "Too many boards",
                f"The board {refused} would be a new one, and there may be {settings.boards_limit} boards"
                " (BELLHOP_BOARDS_LIMIT). Delete boards that are not needed.",
            )
        if remaining.in_all < len(new):
            refused = new[max(0, remaining.in_all)]
            return Problem(
                422,
                "Too many boards",
                f"The board {refused} would be a new one, and keys named {caller.name} may begin"
                f" {settings.boards_per_key} boards (BELLHOP_BOARDS_PER_KEY). Use one that is there, or a key with the"
                " scope leaderboards:write.",
            )
        refused = new[max(0, remaining.this_hour)]
        return Problem(
            429,
            "Too many new boards",
            f"The board {refused} would be a new one, and keys named {caller.name} may begin"
            f" {settings.boards_per_hour} boards an hour (BELLHOP_BOARDS_PER_HOUR). Nothing was accepted: send it again"
            " later, or without that board.",
            headers={"Retry-After": str(remaining.hour_ends_in)},
        )

    def _remember(self, names: list[str]) -> None:
        if len(self._known) + len(names) > KNOWN_NAMES:
            self._known.clear()
        self._known |= dict.fromkeys(names, monotonic() + KNOWN_SECONDS)

    async def begun_at(self, board: str) -> datetime | None:
        """Return when scores created `board`, as far as a gateway recorded it."""
        at = await self._names.created_at(board)
        return datetime.fromtimestamp(at / 1000, UTC) if at else None

    async def note_set_up(self, board: str, caller: Caller) -> None:
        """Note a board that the leaderboard was asked to configure."""
        await self._names.create([board], caller.name, None)

    async def note_deleted(self, board: str) -> None:
        """Delete the name of a board that the leaderboard deleted, so that it counts as new."""
        self._known.pop(board, None)
        await self._names.remove(board)

    async def read_existing(self) -> float:
        """Read the names of all boards from the leaderboard, once; return the seconds until the next try."""
        after = ""
        while not self.complete:
            try:
                names, after = await self._page(after)
            except (PeerUnavailable, KeyError):
                return LATER_SECONDS  # it is not there yet
            if names:
                await self._names.add_existing(names)
            if not after:
                self.complete = True
        return IDLE_SECONDS

    async def _page(self, after: str) -> tuple[list[str], str]:
        document = await self._leaderboard.ask(
            "GET",
            "/v1/leaderboards",
            scope=Scope.LEADERBOARDS_READ,
            params={"limit": PAGE, "after": after, "hidden": "true"},
        )
        return [board["board"] for board in document["boards"]], document["next"] or ""
