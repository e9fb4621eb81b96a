"""The names of leaderboards, and the client that created each, for the quotas of new boards."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the table; the gateway reads the names of existing boards from the leaderboard."""
    op.create_table(
        "board_names",
        sa.Column("board", sa.String(128), primary_key=True),
        sa.Column("owner", sa.String(255), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("board_names_by_owner", "board_names", ["owner", "created_at"])


def downgrade() -> None:
    """Drop the table."""
    op.drop_index("board_names_by_owner", "board_names")
    op.drop_table("board_names")
