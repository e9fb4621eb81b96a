"""The outbox by destination, in the order of a sequence, with the memory of messages that may have been delivered."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_KEPT = "id, task_id, exchange, routing_key, envelope, body, due_at, claimed_until"


def upgrade() -> None:
    """Create a new table: SQLite cannot change a primary key."""
    op.drop_index("outbox_by_due", table_name="outbox")
    op.drop_index("outbox_by_task", table_name="outbox")
    op.rename_table("outbox", "outbox_before")
    op.create_table(
        "outbox",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("task_id", sa.String(36)),
        sa.Column("exchange", sa.String(255), nullable=False),
        sa.Column("routing_key", sa.String(255), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("claimed_until", sa.BigInteger, nullable=False),
        sa.Column("retry_at", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("refusals", sa.Integer, nullable=False, server_default="0"),
        sa.Column("maybe_delivered", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    # What had no time of its own carried the time of its commit; what a task or a replay waits for stays. Which of the
    # others were published once is not known, so all of them may have been.
    timed = f"task_id IN (SELECT id FROM tasks WHERE state = 'scheduled') OR due_at = {2**53}"  # noqa: S608
    replayed = f"task_id IS NULL AND due_at > {time.time_ns() // 1_000_000}"
    op.execute(
        f"INSERT INTO outbox ({_KEPT}, maybe_delivered)"  # noqa: S608 our own names
        " SELECT id, task_id, exchange, routing_key, envelope, body,"
        f" CASE WHEN {timed} OR {replayed} THEN due_at ELSE 0 END, claimed_until,"
        f" CASE WHEN {timed} THEN false ELSE true END"
        " FROM outbox_before ORDER BY due_at"
    )
    op.drop_table("outbox_before")
    op.create_index("outbox_by_id", "outbox", ["id"], unique=True)
    op.create_index("outbox_by_destination", "outbox", ["exchange", "routing_key", "due_at", "sequence"])
    op.create_index("outbox_by_task", "outbox", ["task_id"])


def downgrade() -> None:
    """Put back what was there."""
    for name in ("outbox_by_id", "outbox_by_destination", "outbox_by_task"):
        op.drop_index(name, table_name="outbox")
    op.rename_table("outbox", "outbox_after")
    op.create_table(
        "outbox",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("task_id", sa.String(36)),
        sa.Column("exchange", sa.String(255), nullable=False),
        sa.Column("routing_key", sa.String(255), nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("claimed_until", sa.BigInteger, nullable=False),
    )
    op.execute(f"INSERT INTO outbox ({_KEPT}) SELECT {_KEPT} FROM outbox_after ORDER BY sequence")  # noqa: S608
    op.drop_table("outbox_after")
    op.create_index("outbox_by_due", "outbox", ["due_at"])
    op.create_index("outbox_by_task", "outbox", ["task_id"])
