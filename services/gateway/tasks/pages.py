"""The query behind `GET /v1/tasks`: a page costs the same with a thousand tasks and with two million.

Every page is the newest rows of one or more ranges of an index, and a range is one state, of one owner or of all. A
list without a state reads the newest of each state and merges them, so that no further index is needed: indexes
without a state would cost every accepted mail two more insertions. docs/decisions has the figures.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from bellhop.contracts.outcomes import State
from services.gateway.tables import tasks

LISTED = [column for column in tasks.c if column.name != "document"]
"""A document may have a megabyte, and a page has up to 500 tasks; no list shows it."""


def page_query(
    *,
    owner: str | None,
    state: str | None,
    kinds: Sequence[str] | None,
    event_id: str | None,
    event_source: str | None = None,
    before: tuple[int, str] | None,
    limit: int,
) -> sa.Select[Any]:
    """Return the query for tasks, newest first, of these kinds or of all.

    `before`: when the last task before was made, and its id.
    """
    if event_id is not None:
        # The index of events is in the order of time: an event has few tasks, and those of a few owners.
        wanted = [
            tasks.c.event_id == event_id,
            *_same(event_source=event_source, owner=owner, state=state),
            *_of_kinds(kinds),
        ]
        return sa.select(*LISTED).where(*wanted, *_before(before)).order_by(*_newest_first(tasks.c)).limit(limit)
    ranges = [
        sa.select(tasks.c.id, tasks.c.created_at)
        .where(*_same(owner=owner, state=each), *_of_kinds(kinds), *_before(before))
        .order_by(*_newest_first(tasks.c))
        .limit(limit)
        .subquery()
        for each in ([state] if state is not None else [known.value for known in State])
    ]
    # SQLite takes ORDER BY and LIMIT in a part of a union only where the part is a subquery.
    merged = sa.union_all(*(sa.select(part.c.id, part.c.created_at) for part in ranges)).subquery()
    chosen = sa.select(merged.c.id).order_by(*_newest_first(merged.c)).limit(limit).scalar_subquery()
    # By time and not by id: the ids of mails that events set off contain no time.
    return sa.select(*LISTED).where(tasks.c.id.in_(chosen)).order_by(*_newest_first(tasks.c))


def _same(**values: str | None) -> list[sa.ColumnElement[bool]]:
    return [tasks.c[name] == value for name, value in values.items() if value is not None]


def _of_kinds(kinds: Sequence[str] | None) -> list[sa.ColumnElement[bool]]:
    return [] if kinds is None else [tasks.c.kind.in_(kinds)]


def _before(place: tuple[int, str] | None) -> list[sa.ColumnElement[bool]]:
    return [] if place is None else [sa.tuple_(tasks.c.created_at, tasks.c.id) < place]


def _newest_first(columns: Any) -> tuple[sa.ColumnElement[Any], sa.ColumnElement[Any]]:
    return columns.created_at.desc(), columns.id.desc()
