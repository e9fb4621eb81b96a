"""Adapts the amount of work of one transaction."""

from services.leaderboard.scores import MAX_WORK

MIN_WORK = 1000


class Pace:
    """Work of the next transaction: halved after one that exceeded its limit, doubled after one that succeeded."""

    def __init__(self) -> None:
        self.work = MAX_WORK

    def slower(self) -> None:
        """Halve it, down to `MIN_WORK`."""
        self.work = max(MIN_WORK, self.work // 2)

    def faster(self) -> None:
        """Double it, up to `MAX_WORK`."""
        self.work = min(MAX_WORK, self.work * 2)
