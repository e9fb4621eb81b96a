"""Back-off for each destination: one that refuses messages gets none for a while, and the others are not delayed.

It is kept in memory. Each replica finds out by itself, with a few messages.
"""

from random import uniform
from time import monotonic

from bellhop.observe.logs import get_logger
from services.gateway.outbox.store import Destination

CHUNK = 500
PROBE = 20
"""Messages that probe whether a destination accepts messages again."""
MAX_BACK_OFF_SECONDS = 30.0
MAX_REMEMBERED = 1000
"""Beyond so many destinations those whose back-off is over are removed."""

log = get_logger(__name__)


class BackOffs:
    """The back-off of each destination that refused messages."""

    def __init__(self) -> None:
        self._refusing: dict[Destination, tuple[int, float]] = {}

    def backs_off(self, destination: Destination) -> bool:
        """Return whether nothing should be published there now."""
        return bool(self._refusing) and self._refusing.get(destination, (0, 0.0))[1] > monotonic()

    def size(self, destination: Destination) -> int:
        """Return how many messages to claim for it."""
        failures, _ = self._refusing.get(destination, (0, 0.0))
        return PROBE if failures > 1 else CHUNK

    def note_confirmed(self, destination: Destination) -> None:
        """Note that all messages of a chunk were confirmed."""
        if not self.backs_off(destination) and self._refusing.pop(destination, None) is not None:
            log.info("a destination accepts messages again", exchange=destination[0], routing_key=destination[1])

    def note_refused(self, destination: Destination, reason: str, *, some_confirmed: bool) -> None:
        """Note that messages of a chunk were refused; back off, only briefly if others of it were confirmed."""
        if self.backs_off(destination):
            return  # chunks that were under way together are one failure
        failures, _ = self._refusing.get(destination, (0, 0.0))
        if not failures:
            log.warning(
                "messages stay in the outbox until their destination accepts them", exchange=destination[0],
                routing_key=destination[1], reason=reason,
            )  # fmt: skip
        if len(self._refusing) >= MAX_REMEMBERED:
            self._refusing = {each: of for each, of in self._refusing.items() if of[1] > monotonic()}
        failures = 1 if some_confirmed else failures + 1
        seconds = min(MAX_BACK_OFF_SECONDS, 0.5 * 2 ** min(failures, 10)) * uniform(0.5, 1)
        self._refusing[destination] = (failures, monotonic() + seconds)
