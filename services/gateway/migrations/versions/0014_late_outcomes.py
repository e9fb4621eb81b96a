"""When a task was asked for again, that its cancel was asked for, and addresses in the order of their bytes."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_ADDRESSES = (
    ("tasks", "recipient"),
    ("tasks", "address"),
    ("subscribers", "email"),
    ("subscriptions", "email"),
    ("suppressions", "address"),
)


def upgrade() -> None:
    """Add the columns; PostgreSQL rebuilds the indexes of the addresses, not the tables."""
    op.add_column("tasks", sa.Column("republished_at", sa.BigInteger))
    op.add_column("tasks", sa.Column("cancel_requested_at", sa.BigInteger))
    _collate("C")


def downgrade() -> None:
    """Drop them."""
    _collate("default")
    op.drop_column("tasks", "cancel_requested_at")
    op.drop_column("tasks", "republished_at")


def _collate(collation: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite orders by bytes
    for table, column in _ADDRESSES:
        op.execute(f'ALTER TABLE {table} ALTER COLUMN {column} TYPE varchar(320) COLLATE "{collation}"')
