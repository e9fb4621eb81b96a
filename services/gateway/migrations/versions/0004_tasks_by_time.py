"""Tasks in the order of their creation; two indexes become partial."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Order by time, and make two indexes partial."""
    for name in ("tasks_by_state", "tasks_by_event", "tasks_by_finish"):
        op.drop_index(name, table_name="tasks")
    op.create_index("tasks_by_time", "tasks", ["created_at", "id"])
    op.create_index("tasks_by_state", "tasks", ["state", "created_at", "id"])
    for name, column in (("tasks_by_event", "event_id"), ("tasks_by_finish", "finished_at")):
        there = sa.column(column).is_not(None)
        op.create_index(name, "tasks", [column], sqlite_where=there, postgresql_where=there)


def downgrade() -> None:
    """Put back what was there."""
    for name in ("tasks_by_time", "tasks_by_state", "tasks_by_event", "tasks_by_finish"):
        op.drop_index(name, table_name="tasks")
    op.create_index("tasks_by_state", "tasks", ["state", "id"])
    op.create_index("tasks_by_event", "tasks", ["event_id"])
    op.create_index("tasks_by_finish", "tasks", ["finished_at"])
