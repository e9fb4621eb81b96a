"""The base class of all errors that end by themselves."""


class Unavailable(Exception):
    """A dependency is unavailable. The text says which one, and why.

    Background work waits and tries again; a request is answered with 503 and `Retry-After`.
    """
