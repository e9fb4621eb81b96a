"""Boards, rankings, results and the inbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; services/leaderboard/tables.py says what they are for."""
    op.create_table(
        "boards",
        sa.Column("board", sa.String(128), primary_key=True),
        sa.Column("order", sa.String(16), nullable=False),
        sa.Column("operator", sa.String(16), nullable=False),
        sa.Column("season", sa.String(16), nullable=False),
    )
    op.create_table(
        "rankings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("board", sa.String(128), nullable=False),
        sa.Column("season", sa.String(16), nullable=False),
        sa.Column("players", sa.Integer, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("erasures", sa.Integer, nullable=False),
        sa.UniqueConstraint("board", "season"),
    )
    op.create_table(
        "results",
        sa.Column("ranking", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("player", sa.String(128), primary_key=True),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "applied_messages",
        sa.Column("source", sa.String(1024), primary_key=True),
        sa.Column("id", sa.String(1024), primary_key=True),
        sa.Column("applied_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("applied_messages_by_time", "applied_messages", ["applied_at"])
    op.create_table(
        "applied_scores",
        sa.Column("board", sa.String(128), primary_key=True),
        sa.Column("id", sa.String(255), primary_key=True),
        sa.Column("applied_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("applied_scores_by_time", "applied_scores", ["applied_at"])


def downgrade() -> None:
    """Drop the tables."""
    for table in ("applied_scores", "applied_messages", "results", "rankings", "boards"):
        op.drop_table(table)
