"""Those who watch tasks live see every end of a mail, whichever service decides it."""

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from bellhop.contracts.base import now
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.outcomes import State
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.outbox.store import Entry, now_ms
from services.gateway.tables import outbox
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.store import Acceptance, Ledger, accept
from tests.services.gateway_support import RunningGateway, mail, running_gateway
from tests.services.notifier_support import browser, running, token
from tests.services.test_gateway_dead_tasks import bury
from tests.support import Vhost, wait_until


async def _mail(gateway: RunningGateway, **changes: Any) -> str:
    answer = await gateway.admin.post("/v1/mail", json=mail(**changes))
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.mark.timeout(180)
async def test_every_end_of_a_task_is_shown_once(vhost: Vhost, database_url: str, tmp_path: Path) -> None:
    """Sent, failed, failed with a dead letter, cancelled, suppressed when it was posted, and withdrawn."""
    later = (now() + timedelta(hours=1)).isoformat()
    async with (
        running(vhost.amqp_url, tmp_path, ping_seconds="3") as notifier,
        running_gateway(vhost, database_url) as gateway,
    ):
        suppressed = {"address": "no@example.com", "reason": "asked for it"}
        assert (await gateway.admin.post("/v1/suppressions", json=suppressed)).status_code == 201
        async with browser(notifier.url, token("tasks:admin")) as reader:
            assert (await reader.next(20) or {})["type"] == "ready"
            ends = {}
            for state in (State.SENT, State.FAILED):
                ends[await _mail(gateway)] = state
                task_id = list(ends)[-1]
                await gateway.report(task_id, state, owner="admin", lane="normal")
            cancelled = await _mail(gateway, send_at=later)
            assert (await gateway.admin.post(f"/v1/tasks/{cancelled}/cancel")).status_code == 200
            withdrawn = await _mail(gateway, to="leaves@example.com", send_at=later)
            gone = {"address": "leaves@example.com", "reason": "bounced"}
            assert (await gateway.admin.post("/v1/suppressions", json=gone)).status_code == 201
            dead = await _mail(gateway)
            await bury(gateway, dead, orjson.dumps({"task_id": dead, "round": 1}))
            ends |= {
                cancelled: State.CANCELLED,
                withdrawn: State.SUPPRESSED,
                dead: State.FAILED,
                await _mail(gateway, to="no@example.com"): State.SUPPRESSED,
            }

            seen = [await reader.next(60) or {} for _ in ends]
            assert {each["data"]["task_id"]: each["data"]["state"] for each in seen} == ends
            assert all(each["type"] == f"mail.{each['data']['state']}" for each in seen)
            replies = {each["data"]["task_id"]: each["data"].get("reply") for each in seen}
            assert replies[withdrawn] == "The address is suppressed: bounced"
            assert "dead letter" in replies[dead]

            # The end of one more, which comes after any second copy of those before.
            last = await _mail(gateway, to="no@example.com")
            assert ((await reader.next(60)) or {})["data"]["task_id"] == last
            assert Counter(each["event_id"] for each in seen).most_common(1)[0][1] == 1


async def test_the_end_of_a_task_and_its_event_are_one_commit(vhost: Vhost, database_url: str, tmp_path: Path) -> None:
    """A gateway that ends between the commit and the publishing loses nothing: the next one publishes it."""
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    document = {"task_id": "t-1", "owner": "admin", "to": "ada@example.com", "subject": "Hi", "text": "Hi"}
    due = now_ms() + 3_600_000
    async with database.write() as connection:
        row = new_task(MAIL, document, b"{}", created_at=now_ms(), send_at=due)
        entry: Entry = request_entry(MAIL, document, b"{}", due_at=due)
        await accept(connection, [Acceptance(b"{}", [row], [entry], claimed=False)])
    async with database.write() as connection:
        assert await Ledger(database).cancel(connection, ["t-1"]) == [State.CANCELLED]
    async with database.read() as connection:
        waiting = list((await connection.execute(sa.select(outbox.c.exchange, outbox.c.routing_key))).all())
    await database.close()
    assert waiting == [("notifications", "mail.cancelled")]

    async with running_gateway(vhost, database_url):

        async def kept() -> bool:
            return await vhost.depth("notifier.log") == 1

        await wait_until(kept, 30, "the event is on the stream")
