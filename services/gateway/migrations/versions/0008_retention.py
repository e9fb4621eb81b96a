"""What retention needs: when contents were erased, indexes by age, and how many bytes of attachments each key has."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_PARTIAL = (
    ("dead_letters_replayed", "dead_letters", "replayed_at", "replayed_at IS NOT NULL AND erased_at IS NULL"),
    ("broadcasts_with_content", "broadcasts", "finished_at", "finished_at IS NOT NULL AND erased_at IS NULL"),
    ("suppressions_by_end", "suppressions", "expires_at", "expires_at IS NOT NULL"),
    ("subscriptions_pending", "subscriptions", "asked_at", "state = 'pending'"),
)


def upgrade() -> None:
    """Create them."""
    for table in ("dead_letters", "broadcasts"):
        op.add_column(table, sa.Column("erased_at", sa.BigInteger(), nullable=True))
    for name, table, column, condition in _PARTIAL:
        where = sa.text(condition)
        op.create_index(name, table, [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "attachment_usage",
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
    op.execute("INSERT INTO attachment_usage (owner, bytes) SELECT owner, sum(size) FROM attachments GROUP BY owner")


def downgrade() -> None:
    """Drop them."""
    op.drop_table("attachment_usage")
    for name, table, _, _ in reversed(_PARTIAL):
        op.drop_index(name, table_name=table)
    for table in ("broadcasts", "dead_letters"):
        op.drop_column(table, "erased_at")
