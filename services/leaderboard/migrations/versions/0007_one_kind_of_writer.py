"""Replicas of earlier versions, which run until the end of an upgrade, can read and no longer write.

They do not number their commits in `progress`, so that a replica of this version would not see what they wrote: it
would go on from older results, and give new rankings the ids of theirs. They get an error by which they wait, and hand
their messages back when they end. A later migration that writes to these tables sets `bellhop.leaderboard` first.
"""

from alembic import op

revision = "0007"
down_revision = "0006"

_TABLES = ("boards", "rankings")


def upgrade() -> None:
    """Refuse writers that do not say that they know the versions of `progress` (`Store.writing`)."""
    if op.get_bind().dialect.name != "postgresql":
        return  # SQLite serves one process
    op.execute(
        "CREATE FUNCTION refuse_earlier_versions() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('bellhop.leaderboard', true) IS DISTINCT FROM 'versions' THEN"
        "  RAISE EXCEPTION 'this version of the leaderboard can no longer write; end it'"
        "  USING ERRCODE = 'cannot_connect_now';"
        " END IF; RETURN NULL; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_of_this_version BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_earlier_versions()"
        )


def downgrade() -> None:
    """Let every version write."""
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in _TABLES:
        op.execute(f"DROP TRIGGER {table}_of_this_version ON {table}")
    op.execute("DROP FUNCTION refuse_earlier_versions()")
