"""Why a board cannot be read, set up or changed."""


class UnknownBoard(Exception):
    """The board was never set up, and no score names it."""


class TooManyBoards(Exception):
    """The number of boards has reached its limit."""


class BoardInUse(Exception):
    """The board has scores, so its settings cannot change."""
