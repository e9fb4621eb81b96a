"""What a command says when it cannot do what it was asked."""


class CannotRun(Exception):
    """One sentence for a person: what is wrong and what to do about it. Commands print it and exit with 1."""
