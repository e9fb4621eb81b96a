"""What the newsletter derives from an address."""

from bellhop.contracts.base import derived_id


def subscriber_id(email: str) -> str:
    """Return the id that follows from a canonical address: a link in an old mail still means the same person."""
    return derived_id("subscriber", email)
