"""Indexes by which every list costs as much as its page, and what a list shows of a broadcast without its content."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_OF_EVENT = sa.text("event_id IS NOT NULL")
_UNFINISHED = sa.text("finished_at IS NULL")
_WAITING = sa.text("replayed_at IS NULL AND deleted_at IS NULL")


def upgrade() -> None:
    """Create them."""
    op.drop_index("tasks_by_time", table_name="tasks")
    op.create_index("tasks_by_owner", "tasks", ["owner", "state", "created_at", "id"])
    op.drop_index("tasks_by_event", table_name="tasks")
    columns = ["event_id", "created_at", "id"]
    op.create_index("tasks_by_event", "tasks", columns, sqlite_where=_OF_EVENT, postgresql_where=_OF_EVENT)
    for name, columns in (("dead_letters_waiting", ["id"]), ("dead_letters_waiting_by_queue", ["queue", "id"])):
        op.create_index(name, "dead_letters", columns, sqlite_where=_WAITING, postgresql_where=_WAITING)
    op.create_index("subscriptions_by_any_state", "subscriptions", ["state", "email"])
    op.create_index("suppressions_by_source", "suppressions", ["source", "address"])
    op.create_index("broadcasts_by_owner", "broadcasts", ["owner", "id"])
    op.drop_index("broadcasts_by_state", table_name="broadcasts")
    op.create_index(
        "broadcasts_unfinished", "broadcasts", ["id"], sqlite_where=_UNFINISHED, postgresql_where=_UNFINISHED
    )
    op.add_column("broadcasts", sa.Column("subject", sa.Text(), nullable=True))
    op.add_column("broadcasts", sa.Column("template", sa.String(length=128), nullable=True))
    _copy_subjects()


def _copy_subjects() -> None:
    broadcasts = sa.table("broadcasts", *map(sa.column, ("id", "content", "subject", "template")))
    bind = op.get_bind()
    # One by one: a content may have a megabyte.
    for id_ in bind.execute(sa.select(broadcasts.c.id)).scalars().all():
        mine = broadcasts.c.id == id_
        content = json.loads(bind.execute(sa.select(broadcasts.c.content).where(mine)).scalar_one())
        values = {"subject": content.get("subject"), "template": content.get("template")}
        bind.execute(sa.update(broadcasts).where(mine).values(values))


def downgrade() -> None:
    """Put back what was there."""
    op.drop_column("broadcasts", "template")
    op.drop_column("broadcasts", "subject")
    op.drop_index("broadcasts_unfinished", table_name="broadcasts")
    op.create_index("broadcasts_by_state", "broadcasts", ["state"])
    op.drop_index("broadcasts_by_owner", table_name="broadcasts")
    op.drop_index("suppressions_by_source", table_name="suppressions")
    op.drop_index("subscriptions_by_any_state", table_name="subscriptions")
    op.drop_index("dead_letters_waiting_by_queue", table_name="dead_letters")
    op.drop_index("dead_letters_waiting", table_name="dead_letters")
    op.drop_index("tasks_by_event", table_name="tasks")
    op.create_index("tasks_by_event", "tasks", ["event_id"], sqlite_where=_OF_EVENT, postgresql_where=_OF_EVENT)
    op.drop_index("tasks_by_owner", table_name="tasks")
    op.create_index("tasks_by_time", "tasks", ["created_at", "id"])
