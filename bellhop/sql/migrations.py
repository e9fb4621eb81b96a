"""Upgrade a database to the schema of one service: Alembic, without a configuration file for each service."""

from importlib import resources

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from bellhop.sql.database import Database, DatabaseUnavailable, first_line

# Replicas that start together must not migrate concurrently. The number is arbitrary and must never change.
_ADVISORY_LOCK = 0x62656C6C

MIGRATE_SECONDS = 3600.0
"""Limit of all migrations; one may rewrite a table with millions of rows."""


async def migrate(database_url: str, package: str, *, to: str = "head") -> None:
    """Upgrade the database to revision `to` of `<package>/migrations/versions`. Idempotent; safe to run concurrently.

    Raises:
        DatabaseUnavailable: the database does not answer, or refuses to create the tables.
    """
    database = Database(database_url)
    try:
        async with database.write(MIGRATE_SECONDS) as connection:
            if database.dialect == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            if not await connection.run_sync(_newest, package):
                await connection.run_sync(_upgrade, package, to)
    except DBAPIError as error:
        raise DatabaseUnavailable(f"the tables of {package} cannot be created: {first_line(error)}") from error
    finally:
        await database.close()


def _newest(connection: Connection, package: str) -> bool:
    """Return whether the schema is current. A migration's file is named after its revision: 0001_what.py."""
    folder = resources.files(package) / "migrations" / "versions"
    revision = max(file.name for file in folder.iterdir() if file.name.endswith(".py")).partition("_")[0]
    table = _version_table(package)
    if not inspect(connection).has_table(table):
        return False
    return connection.execute(text(f"SELECT version_num FROM {table}")).scalar() == revision  # noqa: S608 our own name


def _version_table(package: str) -> str:
    # Services may share a database; each has a version table of its own.
    return "version_" + package.rpartition(".")[2]


def _upgrade(connection: Connection, package: str, to: str) -> None:
    # Imported here: a start with a current schema, which is nearly every start, needs neither Alembic's 7 MB nor the
    # time to import it.
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext, StampStep
    from alembic.script import ScriptDirectory

    with resources.as_file(resources.files(package) / "migrations") as folder:
        script = ScriptDirectory(str(folder))

        def to_head(revision: tuple[str, ...], _context: MigrationContext) -> list[StampStep]:
            return script._upgrade_revs(to, revision)  # type: ignore[return-value, arg-type]

        with EnvironmentContext(Config(), script, fn=to_head) as environment:
            environment.configure(connection=connection, version_table=_version_table(package))
            environment.run_migrations()
