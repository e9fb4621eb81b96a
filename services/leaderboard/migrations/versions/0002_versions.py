"""One sequence number for all commits, so that a replica reads only what changed since the last it saw."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# Until now each ranking counted its own commits; SQLite's integers have 64 bits anyway.
WIDENED = ("rankings", "results")


def upgrade() -> None:
    """Add the sequence; it goes on from the highest number in use."""
    if op.get_bind().dialect.name == "postgresql":
        # As every writer does (`LOCK` in store.py): a replica of the version before may be in the middle of a commit.
        op.execute("SELECT pg_advisory_xact_lock(1818583396)")
    op.create_table(
        "progress",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("last_ranking", sa.Integer, nullable=False),
    )
    op.execute(
        "INSERT INTO progress (id, version, last_ranking)"
        " SELECT 1, COALESCE(MAX(version), 0), COALESCE(MAX(id), 0) FROM rankings"
    )
    op.add_column("boards", sa.Column("version", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("boards_by_version", "boards", ["version"])
    op.create_index("rankings_by_version", "rankings", ["version"])
    if op.get_bind().dialect.name == "postgresql":
        for table in WIDENED:
            op.alter_column(table, "version", type_=sa.BigInteger)


def downgrade() -> None:
    """Forget the sequence; the numbers in use stay valid for each ranking."""
    op.drop_index("rankings_by_version", "rankings")
    op.drop_index("boards_by_version", "boards")
    op.drop_column("boards", "version")
    op.drop_table("progress")
