"""The limits that all replicas share."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "mailer_limits",
        sa.Column("name", sa.String(300), primary_key=True),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("rate", sa.Double),
        sa.Column("ceiling", sa.Double),
        sa.Column("climbs_from", sa.Double, nullable=False),
        sa.Column("paused_until", sa.Double, nullable=False),
        sa.Column("strikes", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("mailer_limits")
