"""A dead letter of a task is the end of the task, and its replay a new beginning."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.tables import outbox
from tests.services.gateway_support import RunningGateway, json, mail, running_gateway
from tests.services.test_gateway_broadcasts import act, broadcast, counted, people, reached
from tests.support import wait_until
from tests.support.broker import Vhost


@pytest.fixture
async def gateway(vhost: Vhost, database_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(vhost, database_url) as running:
        yield running


async def posted(gateway: RunningGateway) -> tuple[str, bytes]:
    """Accept a mail and take its message off the queue; return the task's id and the message's body."""
    task_id: str = (await gateway.admin.post("/v1/mail", json=mail())).json()["id"]
    message = await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the message is out")
    return task_id, message.body


async def bury(
    gateway: RunningGateway, task_id: str, body: bytes, queue: str = "mail.normal", attempt: int = 1, **headers: Any
) -> None:
    """Publish a dead letter, as a mailer does."""
    envelope = Envelope(type="mail.requested", source="bellhop/gateway", subject=task_id)
    ours = {
        "bellhop-reason": "rejected", "bellhop-error": "not a MailTask: headers", "bellhop-queue": queue,
        "bellhop-died-at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    message = Message(body, envelope, attempt=attempt, headers=ours | headers)
    await gateway.vhost.publish("dead", queue, body, headers=to_headers(message))


async def task(gateway: RunningGateway, task_id: str, state: State) -> dict[str, Any]:
    """Return the task as soon as it is in this state."""

    async def there() -> dict[str, Any] | None:
        found: dict[str, Any] = (await gateway.admin.get(f"/v1/tasks/{task_id}")).json()
        return found if found["state"] == state else None

    return await wait_until(there, 15, f"the task is {state}")


async def letter(gateway: RunningGateway) -> str:
    async def listed() -> str | None:
        letters = (await gateway.admin.get("/v1/dead-letters")).json()["dead_letters"]
        return letters[0]["id"] if letters else None

    return await wait_until(listed, 10, "the dead letter is listed")


async def test_a_dead_letter_fails_its_task_and_a_replay_queues_it_again(gateway: RunningGateway) -> None:
    """The reason can be read, who waits is woken, and the replayed message is the next attempt of the same round."""
    task_id, body = await posted(gateway)
    waiting = asyncio.create_task(gateway.admin.get(f"/v1/tasks/{task_id}", params={"wait": 20}))
    await bury(gateway, task_id, body)
    failed = (await waiting).json()
    assert failed["state"] == "failed"
    assert failed["attempts"][-1]["reply"] == "The message became a dead letter (rejected): not a MailTask: headers"

    assert (await gateway.admin.post(f"/v1/dead-letters/{await letter(gateway)}/replay")).status_code == 202
    assert await gateway.state(task_id) == "queued"
    message = await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the message is out again")
    assert (json(message.body), message.headers["attempt"]) == (orjson.loads(body), 2)
    await gateway.report(task_id, State.SENT, attempt=2)
    assert [each["state"] for each in (await task(gateway, task_id, State.SENT))["attempts"]] == ["failed", "sent"]


async def test_an_unreadable_message_fails_the_task_that_its_envelope_names(gateway: RunningGateway) -> None:
    """Its body is no JSON any more."""
    task_id, _ = await posted(gateway)
    await bury(gateway, task_id, b"\xff\xfe")
    await task(gateway, task_id, State.FAILED)


async def test_what_the_broker_gave_up_fails_its_task_too(gateway: RunningGateway) -> None:
    """By the delivery limit, after a time on the retry ladder; the mail may have gone out."""
    task_id, body = await posted(gateway)
    deaths = [
        {"queue": "mail.normal", "reason": "delivery_limit", "count": 1, "exchange": "work"},
        {"queue": "retry.5s", "reason": "expired", "count": 1, "exchange": "retry.5s"},
    ]
    envelope = Envelope(type="mail.requested", source="bellhop/gateway", subject=task_id)
    headers = to_headers(Message(body, envelope, attempt=2)) | {
        "x-death": deaths, "x-first-death-queue": "retry.5s", "x-first-death-reason": "expired",
    }  # fmt: skip
    await gateway.vhost.publish("dead", "mail.normal", body, headers=headers)
    failed = await task(gateway, task_id, State.FAILED)
    assert failed["attempts"][-1]["uncertain"]
    found = (await gateway.admin.get(f"/v1/dead-letters/{await letter(gateway)}")).json()
    assert (found["queue"], found["reason"]) == ("mail.normal", "delivery_limit")


async def test_a_dead_letter_of_a_task_that_is_sent_is_not_replayed(gateway: RunningGateway) -> None:
    """The task went on without it, for instance by another round."""
    task_id, body = await posted(gateway)
    await bury(gateway, task_id, body)
    await task(gateway, task_id, State.FAILED)
    assert (await gateway.admin.post(f"/v1/tasks/{task_id}/retry")).status_code == 202
    path = f"/v1/dead-letters/{await letter(gateway)}"
    assert (await gateway.admin.post(f"{path}/replay")).status_code == 409
    assert (await gateway.admin.delete(path)).status_code == 204
    assert (await gateway.admin.get(f"/v1/tasks/{task_id}")).json()["round"] == 2


async def test_a_broadcast_ends_with_its_dead_letters_and_goes_on_with_their_replay(gateway: RunningGateway) -> None:
    """It is finished with what failed, and runs again for the replayed message."""
    await people(gateway, 1)
    broadcast_id = await broadcast(gateway)
    message = await wait_until(lambda: gateway.vhost.get("mail.bulk"), 10, "the message is out")
    task_id = str(json(message.body)["task_id"])
    await bury(gateway, task_id, message.body, "mail.bulk")
    assert counted(await reached(gateway, broadcast_id, "finished")) == {"failed": 1}
    assert (await gateway.admin.post(f"/v1/dead-letters/{await letter(gateway)}/replay")).status_code == 202
    assert counted(await reached(gateway, broadcast_id, "running")) == {"queued": 1}
    await gateway.report(task_id, State.SENT, attempt=2)
    assert counted(await reached(gateway, broadcast_id, "finished")) == {"sent": 1}
    assert await act(gateway, broadcast_id, "cancel") == 409


async def test_a_replay_at_two_gateways_sends_each_letter_once(gateway: RunningGateway, database_url: str) -> None:
    """Both are asked for the same group at the same time."""
    for number in range(30):
        await bury(
            gateway, f"unknown-{number}", b'{"broken": true}', **{"bellhop-died-at": f"2026-01-01T00:00:{number:02}Z"}
        )

    async def stored() -> bool:
        return len((await gateway.admin.get("/v1/dead-letters")).json()["dead_letters"]) == 30

    await wait_until(stored, 15, "the dead letters are stored")
    both = [Database(database_url), Database(database_url)]
    try:
        counts = await asyncio.gather(
            *(
                DeadLetters(each).replay(ids=None, queue="mail.normal", actor="a", rate=0.001, limit=30, body=None)
                for each in both
            )
        )
        async with both[0].read() as connection:
            messages = (await connection.execute(sa.select(sa.func.count()).select_from(outbox))).scalar_one()
    finally:
        for each in both:
            await each.close()
    published = 0
    while await gateway.vhost.get("mail.normal") is not None:
        published += 1
    assert sum(counts) == 30
    assert messages + published == 30
