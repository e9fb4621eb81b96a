"""Broadcasts that are under way begin their walk through the addresses again, in the order of their bytes."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Reset the cursors. PostgreSQL ordered addresses by its locale before: what was behind one may be before it now.

    Who has a task of the broadcast is passed over.
    """
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite ordered by bytes before, too
    op.execute(
        "UPDATE broadcasts SET fed_after = '', cancel_after = '',"
        " retry_after = CASE WHEN retry_after IS NULL THEN NULL ELSE '' END WHERE finished_at IS NULL"
    )


def downgrade() -> None:
    """Leave the cursors as they are."""
