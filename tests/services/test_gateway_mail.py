"""Mail over HTTP: accepted once, durable, and visible until its end."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import httpx
import pytest

from bellhop.contracts.base import now
from bellhop.contracts.outcomes import State
from tests.services.gateway_support import RunningGateway, json, mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost


@pytest.fixture
async def gateway(vhost: Vhost, database_url: str) -> AsyncIterator[RunningGateway]:
    async with running_gateway(vhost, database_url) as running:
        yield running


async def accepted(gateway: RunningGateway, **changes: object) -> str:
    answer = await gateway.admin.post("/v1/mail", json=mail(**changes))
    assert answer.status_code == 202, answer.text
    task_id: str = answer.json()["id"]
    return task_id


async def test_a_mail_becomes_a_message_on_its_lane(gateway: RunningGateway) -> None:
    """202 with an id and a Location; the mailer's queue holds the task with everything to send it."""
    answer = await gateway.admin.post("/v1/mail", json=mail(lane="urgent", headers={"X-Tag": "a"}))

    assert answer.status_code == 202
    task_id = answer.json()["id"]
    assert answer.headers["location"] == f"/v1/tasks/{task_id}"
    message = await wait_until(lambda: gateway.vhost.get("mail.urgent"), 10, "the task is on its queue")
    assert json(message.body) == {
        "task_id": task_id,
        "owner": "admin",
        "to": "ada@example.com",
        "lane": "urgent",
        "subject": "Hello",
        "text": "Hello Ada",
        "headers": {"X-Tag": "a"},
    }


async def test_an_outcome_is_seen_by_who_waits(gateway: RunningGateway) -> None:
    """A long poll answers as soon as the task is final, with the attempt and the server's words."""
    task_id = await accepted(gateway)
    waiting = asyncio.create_task(gateway.admin.get(f"/v1/tasks/{task_id}", params={"wait": 25}))
    await gateway.report(task_id, State.SENT, code=250, reply="2.0.0 Ok", enhanced="2.0.0")

    answer = await asyncio.wait_for(waiting, 10)

    task = answer.json()
    assert task["state"] == "sent"
    assert [(one["attempt"], one["code"], one["reply"]) for one in task["attempts"]] == [(1, 250, "2.0.0 Ok")]


async def test_a_long_poll_ends_when_its_time_is_over(gateway: RunningGateway) -> None:
    """`Prefer: wait=1` answers after a second with the task as it is, and says that it listened."""
    task_id = await accepted(gateway)

    answer = await gateway.admin.get(f"/v1/tasks/{task_id}", headers={"Prefer": "wait=1"})

    assert answer.json()["state"] == "queued"
    assert answer.headers["preference-applied"] == "wait=1"


async def test_an_unchanged_task_is_not_sent_again(gateway: RunningGateway) -> None:
    """`If-None-Match` with the ETag of before is answered 304."""
    task_id = await accepted(gateway)
    tag = (await gateway.admin.get(f"/v1/tasks/{task_id}")).headers["etag"]

    answer = await gateway.admin.get(f"/v1/tasks/{task_id}", headers={"If-None-Match": tag})

    assert answer.status_code == 304


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1, 2, 2)])
async def test_outcomes_in_any_order_end_the_same(gateway: RunningGateway, order: tuple[int, ...]) -> None:
    """Outcomes may come late, twice and mixed up: the task ends where its furthest outcome is."""
    task_id = await accepted(gateway)
    reports = [
        (State.RETRYING, 1, {"code": 451, "retry_at": now()}),
        (State.RETRYING, 2, {"code": 421, "retry_at": now()}),
        (State.SENT, 3, {"code": 250}),
    ]
    for number in order:
        state, attempt, values = reports[number]
        await gateway.report(task_id, state, attempt, **values)

    async def attempts() -> bool:
        task = (await gateway.admin.get(f"/v1/tasks/{task_id}")).json()
        return len(task["attempts"]) == 3 and task["state"] == "sent"

    await wait_until(attempts, 10, "all attempts are noted and the task is sent")


async def test_the_same_idempotency_key_50_times_in_parallel_is_one_task(gateway: RunningGateway) -> None:
    """Whoever asks again under the same key gets the same answer, and one mail goes out."""
    headers = {"Idempotency-Key": '"order-42"'}
    answers = await asyncio.gather(*(gateway.admin.post("/v1/mail", json=mail(), headers=headers) for _ in range(50)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    tasks = (await gateway.admin.get("/v1/tasks")).json()["tasks"]
    assert len(tasks) == 1


async def test_an_idempotency_key_stands_for_one_request(gateway: RunningGateway) -> None:
    """Another request under a used key is 422, and nothing is sent."""
    headers = {"Idempotency-Key": "order-43"}
    await gateway.admin.post("/v1/mail", json=mail(), headers=headers)

    answer = await gateway.admin.post("/v1/mail", json=mail(subject="Other"), headers=headers)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_scheduled_mail_waits_and_can_be_cancelled(gateway: RunningGateway) -> None:
    """With `send_at` the task is scheduled; cancelling it is certain, and the queue stays empty."""
    task_id = await accepted(gateway, send_at=(now() + timedelta(hours=1)).isoformat())
    assert await gateway.state(task_id) == "scheduled"

    answer = await gateway.admin.post(f"/v1/tasks/{task_id}/cancel")

    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert await gateway.vhost.depth("mail.normal") == 0


async def test_a_scheduled_mail_goes_out_when_it_is_due(gateway: RunningGateway) -> None:
    """The outbox publisher publishes it at its time, and the task is queued from then on."""
    task_id = await accepted(gateway, send_at=(now() + timedelta(seconds=1.2)).isoformat())
    assert await gateway.state(task_id) == "scheduled"

    await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the task is on its queue")

    async def queued() -> bool:
        return await gateway.state(task_id) == "queued"

    await wait_until(queued, 10, "the task is queued")


async def test_cancelling_what_the_mailer_may_have_asks_the_mailer(gateway: RunningGateway) -> None:
    """A queued task answers 202 to cancel, and the mailer's cancel queue gets the request."""
    task_id = await accepted(gateway)
    await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the task is on its queue")

    async def asked() -> httpx.Response | None:
        answer = await gateway.admin.post(f"/v1/tasks/{task_id}/cancel")
        return answer if answer.status_code == 202 else None

    await wait_until(asked, 10, "cancel is answered 202")
    message = await wait_until(lambda: gateway.vhost.get("mail.cancel"), 10, "the mailer is asked")
    assert json(message.body) == {"task_id": task_id, "round": 1, "state": "cancelled"}


async def test_a_failed_task_can_have_another_round(gateway: RunningGateway) -> None:
    """Retry publishes the mail again under the same id in the next round; late news of round one changes nothing."""
    task_id = await accepted(gateway)
    await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the first round is on its queue")
    await gateway.report(task_id, State.FAILED, code=550)

    async def failed() -> bool:
        return await gateway.state(task_id) == "failed"

    await wait_until(failed, 10, "the task failed")
    answer = await gateway.admin.post(f"/v1/tasks/{task_id}/retry")
    assert answer.status_code == 202
    second = await wait_until(lambda: gateway.vhost.get("mail.normal"), 10, "the second round is on its queue")
    assert json(second.body)["round"] == 2
    await gateway.report(task_id, State.FAILED, code=550)
    await gateway.report(task_id, State.SENT, round_=2, code=250)

    async def sent() -> bool:
        return await gateway.state(task_id) == "sent"

    await wait_until(sent, 10, "the task is sent")


async def test_what_was_sent_is_not_retried(gateway: RunningGateway) -> None:
    """Retrying a sent mail would send it twice: 409."""
    task_id = await accepted(gateway)
    await gateway.report(task_id, State.SENT, code=250)

    async def sent() -> bool:
        return await gateway.state(task_id) == "sent"

    await wait_until(sent, 10, "the task is sent")
    assert (await gateway.admin.post(f"/v1/tasks/{task_id}/retry")).status_code == 409


async def test_tasks_belong_to_the_key_that_made_them(gateway: RunningGateway) -> None:
    """Another key gets 404 for the task, and does not see it in its list."""
    task_id = await accepted(gateway)
    stranger = gateway.client(await gateway.make_key("stranger", "mail:read", "mail:send"))
    async with stranger:
        assert (await stranger.get(f"/v1/tasks/{task_id}")).status_code == 404
        assert (await stranger.post(f"/v1/tasks/{task_id}/cancel")).status_code == 404
        assert (await stranger.get("/v1/tasks")).json()["tasks"] == []


async def test_tasks_are_listed_page_by_page(gateway: RunningGateway) -> None:
    """The cursor leads through all tasks, newest first, each once."""
    made = [await accepted(gateway, subject=str(number)) for number in range(5)]
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await gateway.admin.get("/v1/tasks", params={"limit": 2, **cursor})).json()
        seen += [task["id"] for task in page["tasks"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}

    assert seen == sorted(made, reverse=True)


async def test_a_broker_outage_does_not_stop_accepting(gateway: RunningGateway) -> None:
    """While connections are cut every mail is accepted into the outbox, and all go out afterwards."""
    await wait_until(lambda: gateway.vhost.close_connections(), 15, "the connections are cut")
    made = {await accepted(gateway, subject=str(number)) for number in range(20)}

    arrived: set[str] = set()

    async def all_there() -> bool:
        message = await gateway.vhost.get("mail.normal")
        if message is not None:
            arrived.add(str(json(message.body)["task_id"]))
        return arrived == made

    await wait_until(all_there, 30, "every mail is on its queue")


BAD: list[tuple[dict[str, object], str]] = [
    ({"to": "ada"}, "#/to"),
    ({"to": "Ada <ada@example.com>"}, "#/to"),
    ({"to": "ada@example.com\r\nBcc: eve@example.com"}, "#/to"),
    ({"to": "ada@[127.0.0.1]"}, "#/to"),
    ({"to": ["ada@example.com"]}, "#/to"),
    ({"to": "ada@example..com"}, "#/to"),
    ({"to": "ada@-example.com"}, "#/to"),
    ({"to": f"ada@{'a' * 64}.com"}, "#/to"),
    ({"to": "ada\u00a0@example.com"}, "#/to"),
    ({"to": "ada@b\u00fcch_er.example"}, "#/to"),
    ({"to": "ada@\u200d.example"}, "#/to"),
    ({"reply_to": "ada@b\u00fccher..example"}, "#/reply_to"),
    ({"to_name": "Ada\r\nBcc: eve@example.com"}, "#/to_name"),
    ({"to_name": "x" * 201}, "#/to_name"),
    ({"subject": "a\nb"}, "#/subject"),
    ({"subject": "a\u2028b"}, "#/subject"),
    ({"subject": ""}, "#/subject"),
    ({"headers": {"Bcc": "eve@example.com"}}, "#/headers"),
    ({"headers": {"X-A": "a\r\nBcc: e"}}, "#/headers/X-A"),
    ({"lane": "express"}, "#/lane"),
    ({"send_at": "tomorrow"}, "#/send_at"),
    ({"send_at": "2026-01-01T00:00:00"}, "#/send_at"),
    ({"id": "mine"}, "#/id"),
    ({"is_admin": True}, "#/is_admin"),
    ({"text": 5}, "#/text"),
    ({"text": None}, "#"),
    ({"template": "welcome"}, "#"),
    ({"data": {"a": 1}}, "#"),
]


async def test_a_bad_mail_is_refused_with_its_field(gateway: RunningGateway) -> None:
    """422 names the field; nothing was written."""
    for changes, pointer in BAD:
        answer = await gateway.admin.post("/v1/mail", json=mail(**changes))

        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert pointer in [error["pointer"] for error in answer.json()["errors"]]
    assert (await gateway.admin.get("/v1/tasks")).json()["tasks"] == []
