"""A defect in the middle of an attempt leaves nothing that another replica has to wait for."""

from typing import Any

import pytest
import sqlalchemy as sa

from bellhop.amqp import settling
from bellhop.amqp.retry import Rung
from bellhop.sql.database import Database
from services.mailer import outcomes
from services.mailer.relays.pool import Relays
from services.mailer.store import inbox
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

    def long(rung: Rung) -> int:
        return 60_000

    def defective(*_: Any, **__: Any) -> Any:
        raise LookupError("a defect")

    monkeypatch.setattr(settling, "expiration_ms", long)
    monkeypatch.setattr(*where, defective)
    smtp_server.data_replies = [reply]
    database = Database(database_url)
    async with running_mailer(vhost, database_url, smtp_server.port) as mailer:
        await mailer.mail()
        await wait_until(lambda: _on_the_ladder(vhost), 20, "the mail waits for its next attempt")
        async with database.read() as connection:
            columns = (inbox.c.state, inbox.c.owner, inbox.c.attempt, inbox.c.uncertain)
            (row,) = await connection.execute(sa.select(*columns))
    await database.close()
    refused = where[1] == "of_attempt" and not reply.startswith("2")
    assert tuple(row) == ("waiting", None, 0, not refused)


async def _on_the_ladder(vhost: Vhost) -> bool:
    return await vhost.depth("retry.5s") == 1
