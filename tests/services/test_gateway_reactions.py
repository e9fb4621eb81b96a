"""Mails that events set off, as the ledger sees them."""

from pathlib import Path

import httpx
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


async def test_an_event_shows_what_it_set_off_to_its_owner(vhost: Vhost, tmp_path: Path) -> None:
    """Type, time and mails of one source; another key's events, and those of which nothing is known, are 404."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as gateway:
        shop = gateway.client(await gateway.make_key("shop", "mail:read"))
        blog = gateway.client(await gateway.make_key("blog", "mail:read"))
        about = {"event_type": "order.placed", "event_time": "2026-01-02T03:04:05Z", "attempt": 0}
        for task_id, owner, source in (("t-1", "shop", "/shop"), ("t-2", "blog", "/shop"), ("t-3", "shop", "/else")):
            origin = ORIGIN | {"owner": owner} | about | {"event_source": source}
            await gateway.report(task_id, State.QUEUED, document=DOCUMENT | {"task_id": task_id}, **origin)

        async def tasks(client: httpx.AsyncClient, path: str) -> list[str]:
            answer = await client.get(path)
            return sorted(task["id"] for task in answer.json()["tasks"]) if answer.status_code == 200 else []

        async def all_there() -> bool:
            return await tasks(gateway.admin, "/v1/events/e-1") == ["t-1", "t-2", "t-3"]

        async with shop, blog:
            await wait_until(all_there, 10, "the ledger has the mails")
            event = (await shop.get("/v1/events?source=/shop&id=e-1")).json()
            assert (event["source"], event["type"]) == ("/shop", "order.placed")
            assert event["time"].startswith("2026-01-02T03:04:05")
            assert [task["id"] for task in event["tasks"]] == ["t-1"]
            assert await tasks(shop, "/v1/events/e-1") == ["t-1", "t-3"]
            assert await tasks(blog, "/v1/events/e-1") == ["t-2"]
            for path in ("/v1/events?source=/else&id=e-1", "/v1/events/e-2", "/v1/events?source=/shop&id=e-2"):
                assert (await blog.get(path)).status_code == 404
