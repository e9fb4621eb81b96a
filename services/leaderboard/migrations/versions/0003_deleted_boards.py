"""Boards can be hidden and deleted."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what is kept of deleted boards; services/leaderboard/tables.py says what it is for."""
    op.add_column("boards", sa.Column("hidden", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "deleted_boards",
        sa.Column("board", sa.String(128), primary_key=True),
        sa.Column("deleted_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("deleted_boards_by_version", "deleted_boards", ["version"])
    op.create_table(
        "discarded_rankings",
        sa.Column("ranking", sa.Integer, primary_key=True, autoincrement=False),
    )


def downgrade() -> None:
    """Forget which boards were deleted, and show the hidden ones."""
    op.drop_table("discarded_rankings")
    op.drop_index("deleted_boards_by_version", "deleted_boards")
    op.drop_table("deleted_boards")
    op.drop_column("boards", "hidden")
