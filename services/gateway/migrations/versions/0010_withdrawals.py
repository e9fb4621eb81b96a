"""Find what waits for an address, and note the addresses whose waiting mail must be withdrawn."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_OPEN = sa.text("finished_at IS NULL")


def upgrade() -> None:
    """Add both; open tasks get their address, in the spelling that all but a few have."""
    op.add_column("tasks", sa.Column("address", sa.String(320)))
    op.execute("UPDATE tasks SET address = lower(recipient) WHERE finished_at IS NULL")
    op.create_index("tasks_open_by_address", "tasks", ["address"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.create_table(
        "withdrawals",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), sa.Identity(), primary_key=True),
        sa.Column("address", sa.String(320), nullable=False),
        sa.Column("list", sa.String(64)),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("looks", sa.Integer, nullable=False),
    )
    op.create_index("withdrawals_by_due", "withdrawals", ["due_at"])


def downgrade() -> None:
    """Drop both."""
    op.drop_table("withdrawals")
    op.drop_index("tasks_open_by_address", table_name="tasks")
    op.drop_column("tasks", "address")
