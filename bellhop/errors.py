"""The error that says: not now."""


class Unavailable(Exception):
    """A server that this process needs cannot be used at the moment. The text says which and why.

    Whoever works in the background waits and tries again; a request is answered 503 with `Retry-After`.
    """
