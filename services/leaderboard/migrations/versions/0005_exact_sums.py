"""Totals of boards that add up are exact: what the double cannot hold stands beside it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# Traces of binary fractions, such as 0.6000000000000001, are taken off what was added up until now. Larger totals have
# no digit to spare, and are rounded when the next score joins them.
_SUMS = "ranking IN (SELECT id FROM rankings JOIN boards ON boards.board = rankings.board WHERE operator = 'sum')"
_ROUNDED = {"sqlite": "ROUND(score, 6)", "postgresql": "ROUND(CAST(score AS NUMERIC), 6)"}


def upgrade() -> None:
    """Add the rest, and round existing totals to millionths."""
    op.add_column("results", sa.Column("rest", sa.BigInteger, nullable=False, server_default="0"))
    rounded = _ROUNDED[op.get_bind().dialect.name]
    op.execute(f"UPDATE results SET score = {rounded} WHERE {_SUMS} AND ABS(score) < 1000000000")  # noqa: S608


def downgrade() -> None:
    """Forget the rests: totals are then what is shown."""
    op.drop_column("results", "rest")
