"""How much a replay of many dead letters reads at once."""

import pytest
import sqlalchemy as sa

from bellhop.amqp.message import Message
from bellhop.contracts.envelope import Envelope
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from services.gateway.dead_letters import store as store_module
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.outbox.store import pack
from services.gateway.tables import dead_letters


async def test_a_replay_of_a_group_is_bounded_in_bytes(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is left for the next request; a letter that is larger than the bound goes alone."""
    monkeypatch.setattr(store_module, "REPLAY_BYTES", 1000)
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    async with database.write() as connection:
        for number, size in enumerate([400, 400, 400, 5000, 1]):
            envelope = Envelope(type="order.placed", source="tests", id=str(number))
            row = {
                "id": f"{number}",
                "identity": f"{number}",
                "queue": "mail.normal",
                "event_id": f"{number}",
                "type": envelope.type,
                "reason": "rejected",
                "error": "",
                "attempts": 1,
                "envelope": pack(Message(b"", envelope)),
                "body": b"x" * size,
                "died_at": number,
            }
            await connection.execute(sa.insert(dead_letters).values(row))
    letters = DeadLetters(database)

    replayed = [
        await letters.replay(ids=None, queue="mail.normal", actor="a", rate=50, limit=100, body=None) for _ in range(5)
    ]

    await database.close()
    assert replayed == [2, 1, 1, 1, 0]
