"""Reserved identities: the owners, sources and channels that Bellhop itself uses, and that no client may use.

An event's identity is (owner, source, id). The owner is the name of the API key that published it, so two clients that
choose the same source and id do not collide; what a service of ours publishes has a source of this table instead.
"""

# Sources of events (CloudEvents 1.0.2, 3.1.1).
GATEWAY = "bellhop/gateway"
MAILER = "bellhop/mailer"
LEADERBOARD = "bellhop/leaderboard"

# Owners of tasks; the names of API keys are the other owners.
ADMIN = "admin"
EVENT_OWNER = "event"
"""Of a mail that an event without an owner set off: one that an AMQP client published itself."""
NEWSLETTER = "newsletter"
"""Of the mails that ask for the confirmation of a subscription."""
BOUNCE = "bounce"
"""What suppressed an address, where it was no client."""

# `events` was an owner in earlier versions, and stored tasks may still have it.
_RESERVED_NAMES = {ADMIN, EVENT_OWNER, "events", NEWSLETTER, BOUNCE}
_RESERVED_SOURCE = "/mailer"  # the mailer's in earlier versions
_PREFIX = "bellhop"

TASKS_CHANNEL = "tasks:"
TASK_CHANNEL = "task:"
BROADCAST_CHANNEL = "broadcast:"
GROUP_CHANNEL = "group:"
LEADERBOARD_CHANNEL = "leaderboard:"
OUR_CHANNELS = (TASKS_CHANNEL, TASK_CHANNEL, BROADCAST_CHANNEL, GROUP_CHANNEL, LEADERBOARD_CHANNEL)
"""Prefixes of the channels on which only services of ours publish."""


def is_reserved_name(name: str) -> bool:
    """Return whether `name` is reserved, so that no API key may have it."""
    folded = name.casefold()
    return folded in _RESERVED_NAMES or folded.startswith(_PREFIX)


def is_our_source(source: str) -> bool:
    """Return whether `source` is reserved, so that no client may publish its events."""
    folded = source.casefold()
    return folded in (_RESERVED_SOURCE, _PREFIX) or folded.startswith((f"{_PREFIX}/", f"{_PREFIX}:"))
