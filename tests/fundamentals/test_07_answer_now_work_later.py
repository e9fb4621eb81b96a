"""Answer at once, work later, and let the client ask what became of it."""

import asyncio
from pathlib import Path

from bellhop.contracts.outcomes import State
from tests.services.gateway_support import mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost


async def test_a_request_is_answered_with_an_id_and_the_result_can_be_asked_for(vhost: Vhost, tmp_path: Path) -> None:
    """202 and an id now; polling sees `queued`; a long poll hears of the outcome the moment it is known."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as gateway:
        accepted = await gateway.admin.post("/v1/mail", json=mail(lane="urgent"))
        assert accepted.status_code == 202
        where = accepted.headers["location"]

        polled = await gateway.admin.get(where)
        assert polled.json()["state"] == "queued"

        waiting = asyncio.create_task(gateway.admin.get(where, params={"wait": 20}))
        await gateway.report(accepted.json()["id"], State.SENT, code=250)
        answer = await asyncio.wait_for(waiting, 10)
        assert answer.json()["state"] == "sent"


async def test_priorities_are_queues_of_their_own(vhost: Vhost, tmp_path: Path) -> None:
    """A password reset does not stand behind a newsletter: each lane is a queue, and the mailer keeps room for it."""
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as gateway:
        for lane in ("bulk", "bulk", "urgent"):
            await gateway.admin.post("/v1/mail", json=mail(lane=lane))

        async def sorted_by_lane() -> bool:
            return (await vhost.depth("mail.bulk"), await vhost.depth("mail.urgent")) == (2, 1)

        await wait_until(sorted_by_lane, 10, "two bulk mails and one urgent mail are on their queues")
