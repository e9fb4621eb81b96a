"""Broadcasts: everybody on the list once, whatever happens in between, and under control all the time."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.contracts.base import now
from bellhop.contracts.mail import MailTask
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from services.gateway.tables import subscribers
from tests.services.gateway_support import RunningGateway, running_gateway
from tests.services.newsletter_support import StandIn, sent
from tests.support import wait_until
from tests.support.broker import Vhost

URL = "https://news.example"


@pytest.fixture
async def gateway(vhost: Vhost, database_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(vhost, database_url, public_url=URL, broadcast_window=50) as running:
        yield running


async def people(gateway: RunningGateway, count: int) -> list[str]:
    """Put so many confirmed people on the list; return their addresses."""
    emails = [f"reader-{number:04}@example.com" for number in range(count)]
    rows = "\n".join(f"{email},Reader {number},{number}" for number, email in enumerate(emails))
    answer = await gateway.admin.post(
        "/v1/subscribers/import",
        params={"lists": "news", "confirmed": "true"},
        content=f"email,name,number\n{rows}".encode(),
        headers={"Content-Type": "text/csv"},
    )
    assert answer.json()["new"] == count, answer.text
    return emails


async def broadcast(gateway: RunningGateway, **changes: object) -> str:
    wish = {"list": "news", "subject": "Hello {{ subscriber.name }}", "text": "News."} | changes
    answer = await gateway.admin.post("/v1/broadcasts", json=wish)
    assert answer.status_code == 202, answer.text
    broadcast_id: str = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/broadcasts/{broadcast_id}"
    return broadcast_id


async def progress(gateway: RunningGateway, broadcast_id: str, **query: str) -> dict[str, Any]:
    found: dict[str, Any] = (await gateway.admin.get(f"/v1/broadcasts/{broadcast_id}", params=query)).json()
    return found


async def act(gateway: RunningGateway, broadcast_id: str, action: str) -> int:
    return (await gateway.admin.post(f"/v1/broadcasts/{broadcast_id}/{action}")).status_code


async def reached(gateway: RunningGateway, broadcast_id: str, state: str, timeout: float = 20) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        document = await progress(gateway, broadcast_id)
        return document if document["state"] == state else None

    return await wait_until(there, timeout, f"the broadcast is {state}", interval=0.1)


def counted(document: dict[str, Any]) -> dict[str, int]:
    return {state: count for state, count in document["counts"].items() if count}


async def test_everybody_gets_one_mail(gateway: RunningGateway) -> None:
    """One task per confirmed recipient, with their name in it, the headers of RFC 8058, and the list's id."""
    emails = await people(gateway, 200)
    await gateway.admin.post("/v1/subscribers", json={"email": "pending@example.com", "lists": ["news"]})
    async with StandIn(sent).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        final = await reached(gateway, broadcast_id, "finished")

    assert sorted(to for to in mailer.recipients if to != "pending@example.com") == emails
    assert (final["recipients"], counted(final)) == (200, {"sent": 200})
    task = next(task for task in mailer.tasks.values() if task.to == emails[7])
    assert (task.subject, task.to_name, task.lane) == ("Hello Reader 7", "Reader 7", "bulk")
    assert task.list_unsubscribe is not None
    assert task.list_unsubscribe.startswith(f"{URL}/unsubscribe?token=")
    assert task.list_unsubscribe in str(task.text)
    assert task.headers["List-Id"] == "<news.news.example>"


async def test_a_template_gets_the_subscriber(gateway: RunningGateway) -> None:
    """The mailer renders it, with what the client gave and who it is for."""
    await people(gateway, 1)
    async with StandIn(sent).running(gateway.vhost) as mailer:
        wish = {"template": "welcome", "data": {"issue": 7}, "subject": None, "text": None}
        await reached(gateway, await broadcast(gateway, **wish), "finished")

    (task,) = mailer.tasks.values()
    assert (task.template, task.data["issue"]) == ("welcome", 7)
    assert task.data["subscriber"]["attributes"] == {"number": "0"}  # type: ignore[index, call-overload]


async def test_no_more_than_the_window_is_under_way(gateway: RunningGateway) -> None:
    """While nothing comes back, a bounded number is with the mailer, and the rest waits."""
    await people(gateway, 200)
    async with StandIn(lambda _: None).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        await wait_until(lambda: len(mailer.tasks) == 20, 10, "the first ones are with the mailer")
        await asyncio.sleep(1)  # nothing may happen, and that takes time to see

        assert len(mailer.tasks) == 20
        assert counted(await progress(gateway, broadcast_id)) == {"queued": 20, "waiting": 180}


async def test_of_a_small_audience_few_are_under_way(gateway: RunningGateway) -> None:
    """So that a pause comes in time for most of them."""
    await people(gateway, 30)
    async with StandIn(lambda _: None).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        await wait_until(lambda: len(mailer.tasks) == 5, 10, "the first ones are with the mailer")
        assert await act(gateway, broadcast_id, "pause") == 202
        assert counted(await reached(gateway, broadcast_id, "paused")) == {"queued": 5, "waiting": 25}


async def test_a_pause_stops_and_a_resume_goes_on(gateway: RunningGateway) -> None:
    """After a pause no task is made; after a resume everybody who was left gets one mail; both can be said twice."""
    emails = await people(gateway, 200)
    stand_in = StandIn(lambda _: None)
    async with stand_in.running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        await wait_until(lambda: len(mailer.tasks) == 20, 10, "the first ones are with the mailer")
        assert [await act(gateway, broadcast_id, "pause") for _ in range(2)] == [202, 202]
        for task_id, round_ in list(mailer.tasks):
            await mailer.report(task_id, round_, {"state": State.SENT, "code": 250})

        async def paused_with_20() -> bool:
            return counted(await progress(gateway, broadcast_id)) == {"sent": 20, "waiting": 180}

        await wait_until(paused_with_20, 10, "what was under way is sent")
        stand_in.decide = sent
        assert [await act(gateway, broadcast_id, "resume") for _ in range(2)] == [202, 202]
        await reached(gateway, broadcast_id, "finished")

    assert sorted(mailer.recipients) == emails
    assert set(mailer.copies.values()) == {1}


async def test_a_cancel_calls_back_what_is_under_way(gateway: RunningGateway) -> None:
    """Nobody else is mailed, the mailer is asked to drop what it holds, and everybody is accounted for."""
    await people(gateway, 200)
    async with StandIn(lambda _: None).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        await wait_until(lambda: len(mailer.tasks) == 20, 10, "the first ones are with the mailer")
        assert await act(gateway, broadcast_id, "cancel") == 202
        final = await reached(gateway, broadcast_id, "cancelled")

    assert (len(mailer.tasks), counted(final)) == (20, {"cancelled": 200})
    assert await act(gateway, broadcast_id, "resume") == 409
    assert await act(gateway, broadcast_id, "retry-failed") == 409


async def test_what_failed_is_retried_and_nothing_else(gateway: RunningGateway) -> None:
    """Each failed one gets a second round under the same task; who left meanwhile does not."""
    emails = await people(gateway, 60)
    bad = set(emails[::10])

    def decide(task: MailTask) -> dict[str, Any]:
        return {"state": State.FAILED, "code": 554} if task.to in bad and task.round == 1 else sent(task)

    async with StandIn(decide).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        first = await reached(gateway, broadcast_id, "finished")
        assert counted(first) == {"sent": 54, "failed": 6}
        left = sorted(bad)[0]
        await gateway.admin.delete(f"/v1/subscribers/{left}")
        assert await act(gateway, broadcast_id, "retry-failed") == 202
        second = await reached(gateway, broadcast_id, "finished")

    assert counted(second) == {"sent": 59, "suppressed": 1}
    again = {task.to: task_id for (task_id, round_), task in mailer.tasks.items() if round_ == 2}
    assert set(again) == bad - {left}
    assert all((task_id, 1) in mailer.tasks for task_id in again.values())


async def test_one_task_of_a_broadcast_can_be_retried(gateway: RunningGateway) -> None:
    """POST /v1/tasks/{id}/retry makes the mail again, and the broadcast goes on until it is done."""
    await people(gateway, 3)

    def decide(task: MailTask) -> dict[str, Any]:
        return {"state": State.FAILED, "code": 554} if task.round == 1 else sent(task)

    async with StandIn(decide).running(gateway.vhost) as mailer:
        broadcast_id = await broadcast(gateway)
        await reached(gateway, broadcast_id, "finished")
        task_id = next(iter(mailer.tasks))[0]
        answer = await gateway.admin.post(f"/v1/tasks/{task_id}/retry")
        assert (answer.status_code, answer.json()["state"]) == (202, "queued")
        await wait_until(lambda: (task_id, 2) in mailer.tasks, 10, "the second round is with the mailer")
        final = await reached(gateway, broadcast_id, "finished")

    assert counted(final) == {"sent": 1, "failed": 2}


async def test_suppressed_and_unfillable_ones_end_at_once(gateway: RunningGateway) -> None:
    """A suppressed address is skipped; a place that cannot be filled fails the one task with its line."""
    emails = await people(gateway, 5)
    await gateway.admin.post("/v1/subscribers", json={"email": emails[2], "lists": ["news"], "attributes": {}})
    await gateway.admin.post("/v1/suppressions", json={"address": emails[1], "reason": "asked by phone"})
    async with StandIn(sent).running(gateway.vhost):
        broadcast_id = await broadcast(gateway, text="Number\n{{ subscriber.attributes.number }}")
        final = await reached(gateway, broadcast_id, "finished")

    assert counted(final) == {"sent": 3, "failed": 1, "suppressed": 1}
    tasks = (await gateway.admin.get(f"/v1/broadcasts/{broadcast_id}/tasks", params={"state": "failed"})).json()
    (failed,) = tasks["tasks"]
    assert failed["to"] == emails[2]
    task = (await gateway.admin.get(f"/v1/tasks/{failed['id']}")).json()
    assert task["attempts"][0]["reply"] == "text, line 2: this subscriber has no attributes.number"


async def test_tasks_are_listed_page_by_page(gateway: RunningGateway) -> None:
    """The cursor leads through all recipients in their order, each once."""
    emails = await people(gateway, 30)
    async with StandIn(sent).running(gateway.vhost):
        broadcast_id = await broadcast(gateway)
        await reached(gateway, broadcast_id, "finished")
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        params = {"limit": "7", "state": "sent", **cursor}
        page = (await gateway.admin.get(f"/v1/broadcasts/{broadcast_id}/tasks", params=params)).json()
        seen += [task["to"] for task in page["tasks"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    assert seen == emails


async def test_progress_is_streamed_until_the_end(gateway: RunningGateway) -> None:
    """Server-sent events show the counts as they change, then `end`; a long poll answers when it is final."""
    await people(gateway, 60)
    async with StandIn(sent).running(gateway.vhost):
        broadcast_id = await broadcast(gateway, send_at=(now() + timedelta(seconds=1)).isoformat())
        polling = asyncio.create_task(progress(gateway, broadcast_id, wait="25"))
        async with gateway.admin.stream("GET", f"/v1/broadcasts/{broadcast_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            events = [line async for line in response.aiter_lines() if line.startswith("event:")]

    assert (events[0], events[-1]) == ("event: progress", "event: end")
    assert len(events) >= 3
    assert counted(await asyncio.wait_for(polling, 10)) == {"sent": 60}


async def test_an_idempotency_key_stands_for_one_broadcast(gateway: RunningGateway) -> None:
    """Sent twenty times under one key it is one broadcast; another one under that key is 422."""
    await people(gateway, 3)
    headers = {"Idempotency-Key": "issue-7"}
    wish = {"list": "news", "subject": "s", "text": "t"}
    async with StandIn(sent).running(gateway.vhost) as mailer:
        answers = await asyncio.gather(
            *(gateway.admin.post("/v1/broadcasts", json=wish, headers=headers) for _ in range(20))
        )
        (broadcast_id,) = {answer.json()["id"] for answer in answers}
        await reached(gateway, broadcast_id, "finished")

    other = await gateway.admin.post("/v1/broadcasts", json=wish | {"text": "other"}, headers=headers)
    assert (len(mailer.tasks), other.status_code) == (3, 422)


async def test_a_broadcast_belongs_to_the_key_that_made_it(gateway: RunningGateway) -> None:
    """Another key gets 404 for it and for all that can be done with it."""
    broadcast_id = await broadcast(gateway, list="newsletter", allow_empty=True)
    scopes = ("broadcasts:read", "broadcasts:write")
    async with gateway.client(await gateway.make_key("stranger", *scopes)) as stranger:
        path = f"/v1/broadcasts/{broadcast_id}"
        answers = [
            await stranger.get(path),
            await stranger.get(f"{path}/tasks"),
            await stranger.get(f"{path}/events"),
            await stranger.post(f"{path}/cancel"),
        ]
        assert [answer.status_code for answer in answers] == [404, 404, 404, 404]
        assert (await stranger.get("/v1/broadcasts")).json()["broadcasts"] == []


BAD: list[dict[str, object]] = [
    {"list": "no blanks"},
    {"text": "{{ subscriber.password }}"},
    {"text": "{% if x %}"},
    {"subject": "a\nb"},
    {"template": "welcome"},
    {"text": None},
    {"reply_to": "ada@b\u00fcch_er.example"},
    {"send_at": "tomorrow"},
    {"headers": {"List-Unsubscribe": "<https://evil.example>"}},
    {"list_unsubscribe": "https://evil.example"},
]


async def test_a_broadcast_to_nobody_is_refused(gateway: RunningGateway) -> None:
    """A list that never had anybody is a mistake; one that has nobody now takes `allow_empty`."""
    await gateway.admin.post("/v1/subscribers", json={"email": "ada@example.com", "lists": ["pending"]})
    cases = [
        ("unknown", {}, 422),
        ("unknown", {"allow_empty": True}, 422),
        ("pending", {}, 422),
        ("pending", {"allow_empty": True}, 202),
        ("newsletter", {"allow_empty": True}, 202),
    ]
    for list_, changes, status in cases:
        wish = {"list": list_, "subject": "s", "text": "t"} | changes
        answer = await gateway.admin.post("/v1/broadcasts", json=wish)
        assert answer.status_code == status, answer.text
        assert status == 202 or answer.json()["errors"][0]["pointer"] == "#/list"


async def test_a_bad_broadcast_is_refused(gateway: RunningGateway) -> None:
    """422 for what could not be sent; there is no broadcast then."""
    await people(gateway, 1)
    for changes in BAD:
        wish = {"list": "news", "subject": "s", "text": "t"} | changes
        assert (await gateway.admin.post("/v1/broadcasts", json=wish)).status_code == 422, changes
    assert (await gateway.admin.get("/v1/broadcasts")).json()["broadcasts"] == []


async def test_two_replicas_make_one_task_for_each_recipient(vhost: Vhost, database_url: str) -> None:
    """Both move the same broadcast on, and nobody has two tasks."""
    async with (
        running_gateway(vhost, database_url, public_url=URL),
        running_gateway(vhost, database_url, public_url=URL) as second,  # only the last admin key works
        StandIn(sent).running(vhost) as mailer,
    ):
        emails = await people(second, 600)
        broadcast_id = await broadcast(second)
        final = await reached(second, broadcast_id, "finished", 60)

    assert counted(final) == {"sent": 600}
    assert sorted(mailer.recipients) == emails


async def test_a_mail_that_cannot_be_made_for_one_person_fails_that_task_alone(
    gateway: RunningGateway, database_url: str
) -> None:
    """Such as one whose attributes were stored by an earlier version."""
    await people(gateway, 3)
    attributes: dict[str, Any] = {}
    for _ in range(40):
        attributes = {"a": attributes}
    database = Database(database_url)
    async with database.write() as connection:
        await connection.execute(
            sa.update(subscribers)
            .where(subscribers.c.email == "reader-0001@example.com")
            .values(attributes=orjson.dumps(attributes))
        )
    await database.close()
    async with StandIn(sent).running(gateway.vhost):
        wish = {"template": "welcome", "subject": None, "text": None}
        final = await reached(gateway, await broadcast(gateway, **wish), "finished")
    assert counted(final) == {"sent": 2, "failed": 1}
