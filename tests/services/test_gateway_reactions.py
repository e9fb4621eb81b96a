"""Mails that events set off, as the ledger sees them."""

import pytest

from bellhop.contracts.outcomes import State
from tests.services.gateway_support import json, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost

DOCUMENT = {
    "task_id": "t-1",
    "owner": "event",
    "to": "ada@example.com",
    "template": "order-confirmed",
    "data": {"order": "A-17"},
    "event_id": "e-1",
}
ORIGIN = {"owner": "event", "lane": "normal", "to": "ada@example.com", "template": "order-confirmed", "event_id": "e-1"}


@pytest.mark.parametrize("order", ["as they happened", "the first one last"])
async def test_a_mail_of_an_event_can_be_sent_again(vhost: Vhost, database_url: str, order: str) -> None:
    """Its first outcome brings what another round needs, in whatever order the outcomes come."""
    async with running_gateway(vhost, database_url) as gateway:

        async def queued() -> None:
            await gateway.report("t-1", State.QUEUED, attempt=0, document=DOCUMENT, **ORIGIN)

        async def failed() -> None:
            await gateway.report("t-1", State.FAILED, code=550, **ORIGIN)

        for report in (queued, failed) if order == "as they happened" else (failed, queued):
            await report()
            await wait_until(lambda: vhost_is_empty(vhost), 10, "the outcome is applied")

        async def retried() -> bool:
            return (await gateway.admin.post("/v1/tasks/t-1/retry")).status_code == 202

        await wait_until(retried, 10, "the task can be retried")
        message = await wait_until(lambda: vhost.get("mail.normal"), 10, "the task is on its queue")
    assert json(message.body) == DOCUMENT | {"round": 2}


async def vhost_is_empty(vhost: Vhost) -> bool:
    return await vhost.depth("gateway.outcomes") == 0
