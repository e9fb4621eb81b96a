"""Whole answers under an idempotency key, and requests under one that are still in progress."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add columns, whose defaults are right for the rows there are and for gateways of the version before."""
    op.add_column("idempotency_keys", sa.Column("id", sa.String(length=36), nullable=False, server_default=""))
    op.add_column("idempotency_keys", sa.Column("status", sa.Integer(), nullable=False, server_default="202"))
    op.add_column("idempotency_keys", sa.Column("location", sa.Text()))
    op.add_column("idempotency_keys", sa.Column("leased_until", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them."""
    for column in ("leased_until", "location", "status", "id"):
        op.drop_column("idempotency_keys", column)
