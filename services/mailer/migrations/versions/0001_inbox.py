"""The inbox, and the replicas that hold claims in it."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "mailer_inbox",
        sa.Column("task_id", sa.String(255), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("uncertain", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("mailer_inbox_by_age", "mailer_inbox", ["created_at"])
    op.create_table(
        "mailer_replicas",
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("seen_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("mailer_replicas")
    op.drop_table("mailer_inbox")
