"""Where the broker is: one AMQP URL, or one for each node of a cluster, separated by commas."""

import re


def split_urls(urls: str) -> list[str]:
    """Return the URLs in `urls`, at least one; a comma inside a password does not separate."""
    return re.split(r"\s*,\s*(?=amqps?://)", urls.strip())
