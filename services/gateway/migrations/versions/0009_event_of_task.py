"""Which event set a mail off: not its id alone."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add columns, which stay empty in the rows there are."""
    op.add_column("tasks", sa.Column("event_source", sa.String(length=1024)))
    op.add_column("tasks", sa.Column("event_type", sa.String(length=255)))
    op.add_column("tasks", sa.Column("event_time", sa.BigInteger()))


def downgrade() -> None:
    """Drop them."""
    for column in ("event_time", "event_type", "event_source"):
        op.drop_column("tasks", column)
