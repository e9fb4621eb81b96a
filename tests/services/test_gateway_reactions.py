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


async def test_they_are_listed_in_the_order_of_time(vhost: Vhost, database_url: str) -> None:
    """Their ids tell no time; the list is newest first all the same, page by page."""
    async with running_gateway(vhost, database_url) as gateway:
        reaction = "ffffffff-ffff-5fff-bfff-ffffffffffff"
        await gateway.report(reaction, State.QUEUED, attempt=0, document=DOCUMENT | {"task_id": reaction}, **ORIGIN)

        async def there() -> bool:
            return (await gateway.admin.get(f"/v1/tasks/{reaction}")).status_code == 200

        await wait_until(there, 10, "the ledger has the mail")
        mail = {"to": "ada@example.com", "subject": "Later", "text": "Hello"}
        newest = (await gateway.admin.post("/v1/mail", json=mail)).json()["id"]
        first = (await gateway.admin.get("/v1/tasks", params={"limit": 1})).json()
        then = (await gateway.admin.get("/v1/tasks", params={"limit": 1, "cursor": first["next"]})).json()
    assert [task["id"] for page in (first, then) for task in page["tasks"]] == [newest, reaction]
