"""Up to when scores are counted: committed with them, so that every replica says what it shows."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the time; it is unknown until the first mark of a gateway."""
    op.add_column("progress", sa.Column("as_of", sa.BigInteger))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("progress", "as_of")
