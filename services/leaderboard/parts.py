"""Parts that handlers, jobs and routes of the leaderboard use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bellhop.amqp.batches import BatchPuller
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.publisher import Publisher
from bellhop.service import Base
from bellhop.web.peer import token_authenticator
from services.leaderboard.announcer import Announcer
from services.leaderboard.pace import Pace
from services.leaderboard.progress import Progress
from services.leaderboard.settings import LeaderboardSettings
from services.leaderboard.standings import Standings
from services.leaderboard.store import Store


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """The open parts of the service."""

    settings: LeaderboardSettings
    store: Store
    standings: Standings
    progress: Progress
    announcer: Announcer
    publisher: Publisher
    consumers: list[Consumer | BatchPuller]
    """Consumers of the service's table; set when the service has been opened."""
    pace: Pace = field(default_factory=Pace)

    @property
    def pending(self) -> int | None:
        """Return how many messages with scores wait; None while another replica consumes them."""
        waiting = [each.pending for each in self.consumers if isinstance(each, BatchPuller)]
        return None if None in waiting else sum(count or 0 for count in waiting)

    def give_back(self, reason: str) -> None:
        """Stop consuming scores, so that another replica can. Idempotent."""
        for each in self.consumers:
            if isinstance(each, BatchPuller):
                each.give_back(reason)


@asynccontextmanager
async def open_leaderboard(base: Base[LeaderboardSettings]) -> AsyncIterator[Leaderboard]:
    """Open the parts; none of them has to be closed."""
    settings = base.settings
    store = Store(base.database)
    standings = Standings(store, past_seasons=settings.past_seasons, boards_limit=settings.boards_limit)
    leaderboard = Leaderboard(
        settings=settings,
        store=store,
        standings=standings,
        progress=Progress(lambda: standings.as_of, lambda: leaderboard.pending),
        announcer=Announcer(base.publisher, lambda: standings.as_of),
        publisher=base.publisher,
        consumers=base.consumers,
    )
    base.app.state.leaderboard = leaderboard
    base.app.state.authenticate = token_authenticator(settings.token_key.get_secret_value(), "leaderboard")
    yield leaderboard
