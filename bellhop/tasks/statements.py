"""The statements of an inbox that run for every task.

SQLAlchemy and the driver would run one statement per row on SQLite; see bellhop/sql/bulk.py for what one statement for
all rows saves.
"""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from bellhop.sql.database import CLOCK_SQL
from bellhop.tasks.claims import InboxState, Key, Result


class Statements:
    """The statements for one inbox table."""

    def __init__(self, table: sa.Table) -> None:
        one = (table.c.task_id == sa.bindparam("b_task_id"), table.c.round == sa.bindparam("b_round"))
        changed: dict[str, Any] = {
            "state": sa.bindparam("b_state"),
            "attempt": sa.bindparam("b_attempt"),
            "uncertain": sa.bindparam("b_uncertain"),
        }
        self.record = (
            sa.update(table)
            # A replica that took us for dead may hold the claim by now. Then only a final result is stored.
            .where(*one, sa.or_(table.c.owner == sa.bindparam("b_owner"), sa.bindparam("b_final", type_=sa.Boolean)))
            .values(owner=None, outcome=sa.bindparam("b_outcome"), **changed)
        )
        self.take_over = sa.update(table).where(*one).values(owner=sa.bindparam("b_owner"), **changed)
        self.request_cancel = sa.update(table).where(*one).values(cancel_requested=True)


def record_values(result: Result, owner: str) -> dict[str, Any]:
    """Return the parameters of `Statements.record`."""
    return take_over_values(result.key, result.state, result.attempt, owner, result.uncertain) | {
        "b_final": result.state is InboxState.FINISHED,
        "b_outcome": result.outcome,
    }


def take_over_values(key: Key, state: InboxState, attempt: int, owner: str | None, uncertain: bool) -> dict[str, Any]:
    """Return the parameters of `Statements.take_over`."""
    return {
        "b_task_id": key[0],
        "b_round": key[1],
        "b_state": state.value,
        "b_attempt": attempt,
        "b_owner": owner,
        "b_uncertain": uncertain,
    }


@lru_cache(1000)
def sqlite_insert(table: str, rows: int) -> str:
    """Return the statement that inserts so many new rows and returns the keys of those that were inserted."""
    columns = "task_id, round, state, attempt, owner, uncertain, outcome, created_at"
    places = ", ".join([f"(?, ?, ?, ?, ?, ?, ?, {CLOCK_SQL['sqlite']})"] * rows)
    return f"INSERT INTO {table} ({columns}) VALUES {places} ON CONFLICT DO NOTHING RETURNING task_id, round"  # noqa: S608


@lru_cache(1000)
def sqlite_record(table: str, rows: int) -> str:
    """Return the statement that does what `Statements.record` does, for so many rows."""
    places = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * rows)
    return (  # the f-string holds the table's name and question marks
        f"WITH new(task_id, round, final, state, attempt, uncertain, outcome) AS (VALUES {places}) "  # noqa: S608
        f"UPDATE {table} SET state = new.state, attempt = new.attempt, owner = NULL, uncertain = new.uncertain, "
        f"outcome = new.outcome FROM new WHERE {table}.task_id = new.task_id AND {table}.round = new.round "
        f"AND ({table}.owner = ? OR new.final)"
    )
