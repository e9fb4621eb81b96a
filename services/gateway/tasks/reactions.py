"""Tasks that events set off: a worker makes them, and the ledger knows them from their first outcome."""

import orjson
from sqlalchemy.ext.asyncio import AsyncConnection

from bellhop.contracts.identity import EVENT_OWNER
from bellhop.contracts.kinds import KINDS, MAIL
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.tasks import Lane
from bellhop.sql.database import Database
from services.gateway.outbox.store import to_ms
from services.gateway.tables import tasks

_OF_FIRST_OUTCOME = ("document", "event_source", "event_type", "event_time")


async def create_reactions(database: Database, connection: AsyncConnection, outcomes: list[Outcome]) -> None:
    """Insert the tasks that events set off and that have no row yet."""
    rows = [
        {
            "id": outcome.task_id,
            "kind": kind.name,
            "owner": outcome.owner or EVENT_OWNER,
            "state": State.QUEUED.value,
            "round": outcome.round,
            "attempt": 0,
            "lane": outcome.lane or Lane.NORMAL.value,
            "recipient": outcome.to,
            "address": kind.address(outcome.to),
            "template": outcome.template,
            "event_id": outcome.event_id,
            "event_source": outcome.event_source,
            "event_type": outcome.event_type,
            "event_time": None if outcome.event_time is None else to_ms(outcome.event_time),
            "document": None if outcome.document is None else orjson.dumps(outcome.document),
            "uncertain": False,
            "created_at": to_ms(outcome.at),
            "updated_at": to_ms(outcome.at),
            "send_at": None,
            "finished_at": None,
        }
        for outcome in outcomes
        if outcome.event_id is not None
        and outcome.to is not None
        and (kind := KINDS.get(outcome.kind or MAIL.name)) is not None
    ]
    if rows:
        insert = database.insert(tasks)
        # The first outcome brings the event, and what another round needs; it may come after a later one.
        await connection.execute(
            insert.on_conflict_do_update(
                index_elements=["id"],
                set_={name: insert.excluded[name] for name in _OF_FIRST_OUTCOME},
                where=tasks.c.document.is_(None) & insert.excluded.document.is_not(None),
            ),
            rows,
        )
