"""How much work one transaction gets."""

from services.leaderboard.scores import MAX_WORK

MIN_WORK = 1000


class Pace:
    """Less work after a transaction that did not end in time, for it may have been too much; then more again."""

    def __init__(self) -> None:
        self.work = MAX_WORK

    def slower(self) -> None:
        """Halve it, down to `MIN_WORK`."""
        self.work = max(MIN_WORK, self.work // 2)

    def faster(self) -> None:
        """Double it, up to `MAX_WORK`."""
        self.work = min(MAX_WORK, self.work * 2)
