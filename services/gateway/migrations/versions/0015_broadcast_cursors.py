"""Running broadcasts start again with the first address, in the order of the bytes."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Reset the cursors. PostgreSQL ordered addresses by its locale before: what was behind one may be before it now.

    Recipients who have a task of the broadcast are skipped.
    """
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite ordered by bytes before, too
    op.execute(
        "UPDATE broadcasts SET fed_after = '', cancel_after = '',"
        " retry_after = CASE WHEN retry_after IS NULL THEN NULL ELSE '' END WHERE finished_at IS NULL"
    )


def downgrade() -> None:
    """Leave the cursors as they are."""
