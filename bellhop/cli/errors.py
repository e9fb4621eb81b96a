"""The error of a command."""


class CannotRun(Exception):
    """A sentence for the user: what is wrong and what to do about it. Commands print it and exit with 1."""
