"""A defect in the middle of an attempt leaves nothing that another replica has to wait for."""

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa

from bellhop.amqp.handling import retry as retrying
from bellhop.amqp.message import Delivery
from bellhop.amqp.retry import RetryQueue
from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.tasks import waiting
from bellhop.tasks.claims import InboxState, Result
from bellhop.tasks.inbox import Inbox
from services.mailer import handlers, outcomes
from services.mailer.parts import Mailer
from services.mailer.relays.pool import Relays
from services.mailer.tables import INBOX
from tests.services.mailer_running import running_mailer
from tests.support import SmtpServer, Vhost, wait_until


@pytest.mark.parametrize("reply", ["250 2.0.0 OK", "451 4.3.0 local error"])
@pytest.mark.parametrize("where", [(Relays, "send"), (outcomes, "of_attempt")], ids=["sending", "concluding"])
async def test_a_claim_ends_with_a_defect(
    where: tuple[Any, str],
    reply: str,
    vhost: Vhost,
    database_url: str,
    smtp_server: SmtpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The row waits for its next attempt without an owner, and is uncertain unless the relay refused the mail."""

    def long(retry_queue: RetryQueue) -> int:
        return 60_000

    def defective(*_: Any, **__: Any) -> Any:
        raise LookupError("a defect")

    monkeypatch.setattr(retrying, "expiration_ms", long)
    monkeypatch.setattr(*where, defective)
    smtp_server.data_replies = [reply]
    database = Database(database_url)
    async with running_mailer(vhost, database_url, smtp_server.port) as mailer:
        await mailer.mail()
        await wait_until(lambda: _on_the_ladder(vhost), 20, "the mail waits for its next attempt")
        async with database.read() as connection:
            columns = (INBOX.tasks.c.state, INBOX.tasks.c.owner, INBOX.tasks.c.attempt, INBOX.tasks.c.uncertain)
            (row,) = await connection.execute(sa.select(*columns))
    await database.close()
    refused = where[1] == "of_attempt" and not reply.startswith("2")
    assert tuple(row) == ("waiting", None, 0, not refused)


async def test_a_mail_that_went_out_unrecorded_is_recorded_when_the_database_is_back(
    vhost: Vhost, database_url: str, smtp_server: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: one mail, one outcome, and no claim that another replica would wait for."""
    unavailable = asyncio.Event()
    unavailable.set()
    given_up = asyncio.Event()
    record, handle = Inbox.record, handlers.send_mail

    async def recording(inbox: Inbox, result: Result) -> InboxState:
        if unavailable.is_set():
            raise DatabaseUnavailable("the database is unavailable")
        return await record(inbox, result)

    async def handling(mailer: Mailer, delivery: Delivery) -> None:
        try:
            await handle(mailer, delivery)
        except DatabaseUnavailable:
            given_up.set()
            unavailable.clear()
            raise

    monkeypatch.setattr(Inbox, "record", recording)
    monkeypatch.setattr(handlers, "send_mail", handling)
    monkeypatch.setattr(waiting, "WAIT_SECONDS", 0.0)
    async with running_mailer(vhost, database_url, smtp_server.port) as mailer:
        await mailer.mail()
        outcome = await mailer.outcome(timeout=20)
        assert given_up.is_set()
        assert (outcome["state"], outcome["uncertain"]) == ("sent", False)
    assert len(smtp_server.mails) == 1


async def _on_the_ladder(vhost: Vhost) -> bool:
    return await vhost.depth("retry.5s") == 1
