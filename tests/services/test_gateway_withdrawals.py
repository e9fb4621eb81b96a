"""An address that gets no mail any more gets none that waits: permission counts when a mail is sent."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from orjson import dumps, loads

from bellhop.contracts.base import new_id, now
from bellhop.contracts.kinds import MAIL
from bellhop.sql.bulk import insert_many
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.outbox import store as outbox
from services.gateway.public_pages.links import Links
from services.gateway.subscribers.addresses import subscriber_id
from services.gateway.suppressions.store import Suppression, SuppressionStore
from services.gateway.tables import tasks
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.withdrawals import Withdrawals
from tests.services.gateway_support import RunningGateway, json, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost


@pytest.fixture
async def gateway(vhost: Vhost, database_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(vhost, database_url) as running:
        yield running


async def post_mail(gateway: RunningGateway, **changes: object) -> str:
    answer = await gateway.admin.post("/v1/mail", json=mail(**changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


async def task(gateway: RunningGateway, task_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.admin.get(f"/v1/tasks/{task_id}")).json()
    return found


async def suppress(gateway: RunningGateway, address: str) -> None:
    answer = await gateway.admin.post("/v1/suppressions", json={"address": address, "reason": "asked by phone"})
    assert answer.status_code == 201, answer.text


async def test_a_scheduled_mail_to_a_suppressed_address_ends(gateway: RunningGateway) -> None:
    """However the address was spelt; its task says why."""
    due = (now() + timedelta(days=30)).isoformat()
    task_id = await post_mail(gateway, to="Ada@B\u00fccher.example", send_at=due)
    other = await post_mail(gateway, to="bob@example.com", send_at=due)

    await suppress(gateway, "ada@xn--bcher-kva.example")

    ended = await wait_until(lambda: suppressed(gateway, task_id), 10, "the task is suppressed")
    assert "asked by phone" in ended["attempts"][0]["reply"]
    assert (await task(gateway, other))["state"] == "scheduled"


async def suppressed(gateway: RunningGateway, task_id: str) -> dict[str, Any] | None:
    found = await task(gateway, task_id)
    return found if found["state"] == "suppressed" else None


async def test_the_mailer_is_asked_not_to_send_what_it_may_have(gateway: RunningGateway, vhost: Vhost) -> None:
    """What is queued or waits for a retry is withdrawn by a request that says how the task ends, and why."""
    task_id = await post_mail(gateway)
    await wait_until(lambda: vhost.depth("mail.normal"), 10, "the mail is queued")

    await suppress(gateway, "ada@example.com")

    message = await wait_until(lambda: vhost.get("mail.cancel"), 10, "the mailer is asked")
    request = json(message.body)
    assert (request["task_id"], request["state"]) == (task_id, "suppressed")
    assert "asked by phone" in str(request["reason"])


async def test_a_newsletter_does_not_reach_those_who_left(gateway: RunningGateway, vhost: Vhost) -> None:
    """The page says "no more mails": what waits of the list's broadcasts is withdrawn, and other mail is not."""
    person = {"email": "ada@example.com", "lists": ["news"], "confirmed": True}
    await gateway.admin.post("/v1/subscribers", json=person)
    content = {"list": "news", "subject": "News", "text": "Hello"}
    assert (await gateway.admin.post("/v1/broadcasts", json=content)).status_code == 202
    await wait_until(lambda: vhost.depth("mail.bulk"), 10, "the newsletter is queued")
    own = await post_mail(gateway)
    await wait_until(lambda: vhost.depth("mail.normal"), 10, "a mail of another kind is queued")

    path = Links(["k" * 40], gateway.url).unsubscribe(subscriber_id("ada@example.com"), "news")
    assert (await gateway.admin.post(path)).status_code == 200

    request = json((await wait_until(lambda: vhost.get("mail.cancel"), 10, "the mailer is asked")).body)
    assert (request["state"], request["reason"]) == ("suppressed", "This person is no longer subscribed to the list.")
    assert request["task_id"] != own


async def test_a_forgotten_person_gets_no_newsletter_that_waits(gateway: RunningGateway, vhost: Vhost) -> None:
    """Deleting somebody withdraws what waits for them."""
    person = {"email": "ada@example.com", "lists": ["news"], "confirmed": True}
    await gateway.admin.post("/v1/subscribers", json=person)
    content = {"list": "news", "subject": "News", "text": "Hello"}
    assert (await gateway.admin.post("/v1/broadcasts", json=content)).status_code == 202
    await wait_until(lambda: vhost.depth("mail.bulk"), 10, "the newsletter is queued")

    assert (await gateway.admin.delete("/v1/subscribers/ada@example.com")).status_code == 204

    await wait_until(lambda: vhost.get("mail.cancel"), 10, "the mailer is asked")


async def test_a_retry_to_a_suppressed_address_is_refused(gateway: RunningGateway) -> None:
    """The address must be released first."""
    await suppress(gateway, "ada@example.com")
    task_id = await post_mail(gateway)
    answer = await gateway.admin.post(f"/v1/tasks/{task_id}/retry")
    assert (answer.status_code, "release it first" in answer.json()["detail"]) == (409, True)


async def test_an_address_that_was_released_keeps_its_mail(database_url: str) -> None:
    """What was suppressed for a moment only, before the loop looked, ends nothing."""
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    suppressions = SuppressionStore(database, 90)
    await suppressions.add(Suppression("ada@example.com", "by mistake", "admin"))
    await suppressions.remove("ada@example.com")
    assert await Withdrawals(database).step() == []
    await database.close()


async def test_two_gateways_withdraw_once(database_url: str) -> None:
    """A row that one of them looks at is not taken by the other."""
    await migrate(database_url, "services.gateway")
    databases = [Database(database_url) for _ in range(2)]
    for number in range(20):
        await SuppressionStore(databases[0], 90).add(Suppression(f"a{number}@example.com", "asked", "admin"))
    steps = await asyncio.gather(*(Withdrawals(database).step() for database in databases))
    assert any(step is not None for step in steps)
    assert await Withdrawals(databases[0]).step() is None
    for database in databases:
        await database.close()


async def test_a_step_is_short_however_many_mails_wait_for_an_address(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends a bite of the tasks; about each that was published the mailer is asked once."""
    monkeypatch.setattr("services.gateway.tasks.withdrawals.MAX_TASKS_A_STEP", 3)
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    waiting = [mail_row(address) for address in ["ops@example.com"] * 8 + ["bob@example.com"]]
    published = {row["id"] for row in waiting[:4]}
    async with database.write() as connection:
        await insert_many(connection, tasks, waiting)
        here = [
            request_entry(MAIL, loads(row["document"]), row["document"])
            for row in waiting
            if row["id"] not in published
        ]
        await outbox.add(connection, here)
    for address in ("ops@example.com", "bob@example.com"):
        await SuppressionStore(database, 90).add(Suppression(address, "asked", "admin"))

    steps = []
    while (step := await Withdrawals(database).step()) is not None:
        steps.append(step)

    ended = [task_id for step in steps for task_id in step]
    assert max(map(len, steps)) <= 3
    assert sorted(ended) == sorted({row["id"] for row in waiting} - published)
    async with database.read() as connection:
        requests = sa.text("SELECT count(*) FROM outbox WHERE routing_key = 'mail.cancel'")
        asked = await connection.scalar(requests)
    assert asked == len(published)
    await database.close()


def mail_row(address: str) -> dict[str, Any]:
    document = {"task_id": new_id(), "owner": "shop", "to": address}
    return new_task(MAIL, document, dumps(document), created_at=1)
