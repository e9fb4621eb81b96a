"""Overflow: a full queue says no to the publisher instead of dropping somebody's message."""

import pytest

from bellhop.amqp.errors import Refused
from tests.fundamentals.conftest import Tutorial


async def test_a_full_queue_refuses_and_keeps_what_it_has(tutorial: Tutorial) -> None:
    """What was confirmed stays; what did not fit is an error, so its publisher can keep it (the outbox does)."""
    policy = {"pattern": "^mail\\.bulk$", "apply-to": "queues", "priority": 9}
    limit = {"definition": {"max-length": 3, "overflow": "reject-publish"}}
    await tutorial.vhost.management.put(f"/api/policies/{tutorial.vhost.name}/small", json=policy | limit)

    with pytest.raises(Refused):
        # A quorum queue takes a few more than its limit before it says no.
        await tutorial.publish("work", "mail.bulk", *map(str, range(100)))

    assert 3 <= await tutorial.vhost.depth("mail.bulk") < 100
