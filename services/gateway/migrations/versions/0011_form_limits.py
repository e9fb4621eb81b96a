"""How often the public form had a mail sent."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table, and the index for its retention."""
    op.create_table(
        "form_limits",
        sa.Column("name", sa.String(length=320), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("form_limits_by_end", "form_limits", ["ends_at"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("form_limits")
