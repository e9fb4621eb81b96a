"""A kind of task that only this file knows goes the way of every kind, without a line of the gateway about it."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from bellhop.amqp.headers import ERROR, QUEUE, REASON
from bellhop.contracts.base import new_id, now
from bellhop.contracts.kinds import KINDS, TaskKind
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.tasks import CancelTask, Lane
from bellhop.sql.database import Database
from services.gateway.outbox.store import now_ms
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.store import Acceptance, accept
from tests.services.gateway_support import RunningGateway, envelope_headers, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost

SMS = TaskKind(
    name="sms",
    queues={lane: f"sms.{lane.value}" for lane in Lane},
    cancel_queue="sms.cancel",
    requested="sms.requested",
    cancelled="sms.cancelled",
    read_scope="events:write",  # a kind of its own would have scopes of its own
    act_scope="scores:write",
)


class Phone:
    """The gateway with the kind, and the worker's side of the broker."""

    def __init__(self, gateway: RunningGateway, database: Database) -> None:
        self.gateway = gateway
        self._database = database

    async def accept(self) -> str:
        """Accept a task, as a route of this kind would."""
        task_id = new_id()
        document = {"task_id": task_id, "owner": "shop", "to": "+49 170 1", "text": "4711"}
        row = new_task(SMS, document, orjson.dumps(document), created_at=now_ms())
        entry = request_entry(SMS, document, orjson.dumps(document))
        async with self._database.write() as connection:
            await accept(connection, [Acceptance(b"{}", [row], [entry], claimed=False)])
        return task_id

    async def message(self, queue: str) -> tuple[str, dict[str, Any]]:
        """Return type and body of the next message of a queue."""

        async def there() -> bool:
            return await self.gateway.vhost.depth(queue) > 0

        await wait_until(there, 30, f"a message is on {queue}")
        message = await self.gateway.vhost.get(queue)
        assert message is not None
        return str(message.headers["cloudEvents:type"]), orjson.loads(message.body)

    async def report(self, task_id: str, state: State, attempt: int, round_: int = 1, **more: Any) -> None:
        """Publish an outcome, as a worker of this kind does, and wait for the ledger."""
        outcome = Outcome(task_id=task_id, round=round_, attempt=attempt, state=state, at=now(), **more)
        await self.gateway.vhost.publish(
            "outcomes",
            SMS.outcome_key("normal", state),
            outcome.model_dump_json(exclude_none=True).encode(),
            headers=envelope_headers(SMS.outcome_type(state)),
        )
        await self.until(task_id, state)

    async def until(self, task_id: str, state: State) -> None:
        """Wait until the ledger has a task in this state."""

        async def reached() -> bool:
            return await self.gateway.state(task_id) == state

        await wait_until(reached, 30, f"the task is {state}")


@pytest.fixture
async def phone(vhost: Vhost, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Phone]:
    """A running gateway that has a second kind."""
    monkeypatch.setitem(KINDS, SMS.name, SMS)
    channel = await vhost.channel()
    for name in SMS.work_queues:
        queue = await channel.declare_queue(name, durable=True)
        await queue.bind("work", name)
    database = Database(database_url)
    async with running_gateway(vhost, database_url) as gateway:
        yield Phone(gateway, database)
    await database.close()


async def test_another_kind_is_published_reported_cancelled_and_retried(phone: Phone) -> None:
    """On the real ledger, with the queues and types of the kind."""
    task_id = await phone.accept()
    assert await phone.message("sms.normal") == ("sms.requested", {
        "task_id": task_id, "owner": "shop", "to": "+49 170 1", "text": "4711",
    })  # fmt: skip
    await phone.report(task_id, State.RETRYING, 1, reply="busy")

    answer = await phone.gateway.admin.post(f"/v1/tasks/{task_id}/cancel")
    assert answer.status_code == 202, answer.text
    type_, body = await phone.message("sms.cancel")
    assert (type_, CancelTask.model_validate(body).task_id) == ("sms.cancelled", task_id)
    await phone.report(task_id, State.CANCELLED, 1)

    answer = await phone.gateway.admin.post(f"/v1/tasks/{task_id}/retry")
    assert (answer.status_code, answer.json()["state"]) == (202, "queued"), answer.text
    type_, body = await phone.message("sms.normal")
    assert (type_, body["task_id"], body["round"]) == ("sms.requested", task_id, 2)
    await phone.report(task_id, State.SENT, 1, round_=2)

    shown = (await phone.gateway.admin.get(f"/v1/tasks/{task_id}")).json()
    assert [(one["round"], one["state"]) for one in shown["attempts"]] == [(1, "cancelled"), (2, "sent")]
    assert (shown["kind"], shown["to"]) == ("sms", "+49 170 1")


async def test_a_dead_letter_of_another_kind_fails_its_task(phone: Phone) -> None:
    """Its queue says which kind it is, and a replay makes the task queued again."""
    task_id = await phone.accept()
    await phone.message("sms.normal")
    await phone.gateway.vhost.publish(
        "dead", "sms.normal", orjson.dumps({"task_id": task_id, "owner": "shop", "to": "+49 170 1"}),
        headers=envelope_headers("sms.requested") | {QUEUE: "sms.normal", REASON: "rejected", ERROR: "no"},
    )  # fmt: skip
    await phone.until(task_id, State.FAILED)
    (letter,) = (await phone.gateway.admin.get("/v1/dead-letters")).json()["dead_letters"]
    answer = await phone.gateway.admin.post(f"/v1/dead-letters/{letter['id']}/replay")
    assert answer.status_code in (200, 202), answer.text
    await phone.until(task_id, State.QUEUED)
    assert (await phone.message("sms.normal"))[0] == "sms.requested"


async def test_each_kind_is_guarded_by_its_own_scopes(phone: Phone) -> None:
    """A key sees the kinds that it may read, and acts on those that it may act on."""
    task_id = await phone.accept()
    mail_only = await phone.gateway.make_key("shop", "mail:read", "mail:send")
    both = await phone.gateway.make_key("shop", "mail:read", "events:write")

    async with phone.gateway.client(mail_only) as client:
        assert (await client.get("/v1/tasks")).json()["tasks"] == []
        assert (await client.get("/v1/tasks?kind=sms")).status_code == 403
        assert (await client.get(f"/v1/tasks/{task_id}")).status_code == 403
        assert (await client.post(f"/v1/tasks/{task_id}/cancel")).status_code == 403
        assert (await client.get("/v1/tasks?kind=fax")).status_code == 422
    async with phone.gateway.client(both) as client:
        for path in ("/v1/tasks", "/v1/tasks?kind=sms"):
            assert [each["id"] for each in (await client.get(path)).json()["tasks"]] == [task_id]
        assert (await client.get("/v1/tasks?kind=mail")).json()["tasks"] == []
        assert (await client.post(f"/v1/tasks/{task_id}/cancel")).status_code == 403
