"""The outbox publisher: one destination that takes nothing neither delays the others nor keeps the gateway busy."""

import asyncio
from datetime import timedelta

import pytest
import sqlalchemy as sa

from bellhop.contracts.base import now
from bellhop.sql.database import Database
from services.gateway.outbox import destinations
from services.gateway.outbox import store as store
from services.gateway.outbox.destinations import BackOffs
from services.gateway.outbox.store import Destination
from services.gateway.tables import outbox
from tests.services.gateway_support import mail, running_gateway
from tests.support import wait_until
from tests.support.broker import Vhost

BULK: Destination = ("work", "mail.bulk")


def test_a_destination_that_refused_is_left_alone_and_then_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure in a row doubles the pause up to a limit; others are not concerned; a success ends it."""
    clock = [0.0]
    monkeypatch.setattr(destinations, "monotonic", lambda: clock[0])
    monkeypatch.setattr(destinations, "uniform", lambda low, high: high)
    known = BackOffs()
    pauses = []
    for _ in range(8):
        known.note_refused(BULK, "full", some_confirmed=False)
        assert known.backs_off(BULK)
        assert not known.backs_off(("work", "mail.normal"))
        began = clock[0]
        while known.backs_off(BULK):
            clock[0] += 0.5
        pauses.append(clock[0] - began)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
    assert known.size(BULK) == destinations.PROBE
    known.note_confirmed(BULK)
    assert known.size(BULK) == destinations.CHUNK


async def test_a_lane_without_its_binding_delays_no_other(
    vhost: Vhost, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 bulk mails cannot be routed: what is due elsewhere goes out, and they do when the binding is back."""
    monkeypatch.setattr(destinations, "MAX_BACK_OFF_SECONDS", 2.0)
    monkeypatch.setattr(store, "MAX_BACK_OFF_MS", 2000)
    async with running_gateway(vhost, database_url) as gateway:
        channel = await vhost.channel()
        bulk = await channel.get_queue("mail.bulk", ensure=False)
        await bulk.unbind("work", "mail.bulk")
        posted = (gateway.admin.post("/v1/mail", json=mail(lane="bulk")) for _ in range(600))
        assert {answer.status_code for answer in await asyncio.gather(*posted)} == {202}
        soon = (now() + timedelta(seconds=1)).isoformat()
        for lane in ("urgent", "normal"):
            assert (await gateway.admin.post("/v1/mail", json=mail(lane=lane, send_at=soon))).status_code == 202
        for lane in ("urgent", "normal"):
            assert await wait_until(lambda lane=lane: vhost.get(f"mail.{lane}"), 15, f"the {lane} mail is out")

        assert await refusals(database_url) <= 600 + 20 * destinations.PROBE
        await bulk.bind("work", "mail.bulk")

        async def all_out() -> bool:
            return await vhost.depth("mail.bulk") == 600

        await wait_until(all_out, 40, "the bulk mails are out", interval=0.2)


async def refusals(database_url: str) -> int:
    """Return how many times a message was refused."""
    database = Database(database_url)
    try:
        async with database.read() as connection:
            return int((await connection.execute(sa.select(sa.func.sum(outbox.c.refusals)))).scalar_one())
    finally:
        await database.close()
