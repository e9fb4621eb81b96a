"""The tables of a worker. A service names them with its own prefix and creates them in its own migrations."""

from dataclasses import dataclass

import sqlalchemy as sa


@dataclass(frozen=True, slots=True)
class InboxTables:
    """The two tables of an inbox. All times are Unix seconds by the database's clock."""

    tasks: sa.Table
    replicas: sa.Table


def inbox_tables(metadata: sa.MetaData, service: str) -> InboxTables:
    """Describe the tables `<service>_inbox` and `<service>_replicas`."""
    tasks = sa.Table(
        f"{service}_inbox",
        metadata,
        sa.Column("task_id", sa.String(255), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(255)),
        sa.Column("uncertain", sa.Boolean, nullable=False),
        sa.Column("outcome", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Index(f"{service}_inbox_by_age", "created_at"),
        sqlite_with_rowid=False,
    )
    replicas = sa.Table(
        f"{service}_replicas",
        metadata,
        sa.Column("owner", sa.String(255), primary_key=True),
        sa.Column("seen_at", sa.Double, nullable=False),
    )
    return InboxTables(tasks, replicas)


def rate_table(metadata: sa.MetaData, service: str) -> sa.Table:
    """Describe the table `<service>_limits`: one row for each rate limit. All times as in an inbox."""
    return sa.Table(
        f"{service}_limits",
        metadata,
        sa.Column("name", sa.String(300), primary_key=True),
        sa.Column("next_at", sa.Double, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("rate", sa.Double),  # tasks a second, as lowered; NULL where the rate was never lowered
        sa.Column("ceiling", sa.Double),  # the rate before it was lowered
        sa.Column("climbs_from", sa.Double, nullable=False),
        sa.Column("paused_until", sa.Double, nullable=False),
        sa.Column("strikes", sa.Integer, nullable=False),
        sa.Column("asked_at", sa.Double, nullable=False, server_default="0"),
    )
