"""Add the time when a limit was last asked for, by the database's clock: it shows that the clock was set back."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("mailer_limits", sa.Column("asked_at", sa.Double, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("mailer_limits", "asked_at")
