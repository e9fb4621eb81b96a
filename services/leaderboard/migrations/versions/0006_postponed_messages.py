"""Messages in retry queues: `as_of` must not pass the scores in them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the table; it is empty unless a message fails unexpectedly."""
    op.create_table(
        "postponed_messages",
        sa.Column("source", sa.String(1024), primary_key=True),
        sa.Column("id", sa.String(1024), primary_key=True),
        sa.Column("accepted_at", sa.BigInteger, nullable=False),
        sa.Column("postponed_at", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("postponed_messages")
