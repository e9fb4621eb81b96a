"""The newsletter: subscribers, suppressions, broadcasts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables, and let a task belong to a broadcast."""
    op.create_table(
        "subscribers",
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("attributes", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("email"),
    )
    op.create_index("subscribers_by_id", "subscribers", ["id"], unique=True)
    op.create_table(
        "subscriptions",
        sa.Column("list", sa.String(length=64), nullable=False),
        sa.Column("email", sa.String(length=320), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("asked_at", sa.BigInteger(), nullable=True),
        sa.Column("confirmed_at", sa.BigInteger(), nullable=True),
        sa.Column("unsubscribed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("list", "email"),
    )
    op.create_index("subscriptions_by_state", "subscriptions", ["list", "state", "email"], unique=False)
    op.create_index("subscriptions_by_email", "subscriptions", ["email"], unique=False)
    op.create_table(
        "suppressions",
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("address"),
    )
    op.create_table(
        "broadcasts",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=255), nullable=False),
        sa.Column("list", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("fed", sa.BigInteger(), nullable=False),
        sa.Column("fed_after", sa.String(length=320), nullable=False),
        sa.Column("fed_all", sa.Boolean(), nullable=False),
        sa.Column("retry_after", sa.String(length=320), nullable=True),
        sa.Column("cancel_after", sa.String(length=320), nullable=False),
        sa.Column("counts", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("send_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("broadcasts_by_state", "broadcasts", ["state"], unique=False)
    op.add_column("tasks", sa.Column("broadcast_id", sa.String(length=36), nullable=True))
    of_broadcast = sa.text("broadcast_id IS NOT NULL")
    for name, columns, unique in (
        ("tasks_by_recipient", ["broadcast_id", "recipient"], True),
        ("tasks_by_broadcast", ["broadcast_id", "state", "recipient"], False),
    ):
        op.create_index(name, "tasks", columns, unique=unique, sqlite_where=of_broadcast, postgresql_where=of_broadcast)


def downgrade() -> None:
    """Drop them."""
    op.drop_index("tasks_by_broadcast", table_name="tasks")
    op.drop_index("tasks_by_recipient", table_name="tasks")
    op.drop_column("tasks", "broadcast_id")
    op.drop_index("broadcasts_by_state", table_name="broadcasts")
    op.drop_table("broadcasts")
    op.drop_table("suppressions")
    op.drop_index("subscriptions_by_email", table_name="subscriptions")
    op.drop_index("subscriptions_by_state", table_name="subscriptions")
    op.drop_table("subscriptions")
    op.drop_index("subscribers_by_id", table_name="subscribers")
    op.drop_table("subscribers")
