"""The destinations of each event type.

A required destination is an exchange where only our own queue is bound, so a confirm means that this queue has the
message, and a missing queue is an error. Every event also goes to `events`, for queues of other clients; no service of
ours needs that copy. A type without a required destination is only for those queues: if none is bound to it, the event
is kept in `unrouted`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bellhop.catalog import EVENT_QUEUES

EVENTS = "events"
UNROUTED = "unrouted"
NOTIFICATIONS = "notifications"
OTHER_TYPES = "*"
"""The routing key in the outbox of all events that none of our own queues needs.

The envelope has the type. Clients choose types, and each destination in the outbox costs the sweep some queries.
"""

SCORES_QUEUE = "leaderboard.scores"
REACTIONS_QUEUE = "mailer.reactions"

MAX_KNOWN = 10_000
"""Types whose destinations are remembered."""


@dataclass(frozen=True, slots=True)
class Destination:
    """One exchange that an event is published to."""

    exchange: str
    routing_key: str
    required: bool


class Routing:
    """Knows the types that our own services need: those of the catalogue, of the settings, and of templates."""

    def __init__(self, live_types: Iterable[str] = ()) -> None:
        """`live_types`: event types that the notifier shows (`BELLHOP_LIVE_TYPES`)."""
        self._live = {"notification.raised", *live_types}
        self._reactions: frozenset[str] = frozenset()
        self._known: dict[str, tuple[Destination, ...]] = {}
        self.loaded = False
        """False until the types that templates name have been read: until then no event can be routed."""

    @property
    def reactions(self) -> list[str]:
        """Return the event types that the mailer's templates name."""
        return sorted(self._reactions)

    def react_to(self, types: Iterable[str]) -> None:
        """Take the event types that the mailer's templates name, in place of those before."""
        self.loaded = True
        reactions = frozenset(types)
        if reactions != self._reactions:
            self._reactions = reactions
            self._known.clear()

    def destinations(self, type_: str) -> tuple[Destination, ...]:
        """Return where an event of this type goes, the required destinations first and `events` last."""
        found = self._known.get(type_)
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[type_] = (*self._required(type_), Destination(EVENTS, type_, required=False))
        return found

    def _required(self, type_: str) -> Iterable[Destination]:
        if (queue := EVENT_QUEUES.get(type_)) is not None:
            yield Destination("work", queue, required=True)
        if type_ in self._live:
            yield Destination(NOTIFICATIONS, type_, required=True)
        if type_ in self._reactions:
            yield Destination("work", REACTIONS_QUEUE, required=True)
