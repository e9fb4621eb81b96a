"""The event types that mail templates name; lists of dead letters that do not scan unrouted events."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_PARTIAL = {
    "dead_letters_failed": "queue != 'unrouted'",
    "dead_letters_failed_waiting": "queue != 'unrouted' AND replayed_at IS NULL AND deleted_at IS NULL",
}


def upgrade() -> None:
    """Make the table and the indexes."""
    op.create_table(
        "reaction_types",
        sa.Column("type", sa.String(128), primary_key=True),
        sa.Column("announced_at", sa.BigInteger, nullable=False),
    )
    for name, which in _PARTIAL.items():
        where = sa.text(which)
        op.create_index(name, "dead_letters", ["id"], sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """Drop them."""
    op.drop_table("reaction_types")
    for name in _PARTIAL:
        op.drop_index(name, table_name="dead_letters")
