"""Bring a database to the schema of one service: Alembic, without a configuration file for each service."""

import asyncio
from importlib import resources

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, StampStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from bellhop.observe.logs import get_logger
from bellhop.sql.database import Database, DatabaseAway

# Two replicas that start together must not migrate together. Any number would do; it names this lock for ever.
_ADVISORY_LOCK = 0x62656C6C


WAIT_SECONDS = 1.0

log = get_logger(__name__)


async def migrate_when_up(database_url: str, package: str) -> None:
    """Do what `migrate` does, as soon as the database answers."""
    waiting = False
    while True:
        try:
            await migrate(database_url, package)
        except DatabaseAway as error:
            if not waiting:
                log.warning("waiting for the database", reason=str(error))
            waiting = True
            await asyncio.sleep(WAIT_SECONDS)
        else:
            return


async def migrate(database_url: str, package: str) -> None:
    """Upgrade the database to the newest version in `<package>/migrations/versions`; nothing to do is fine.

    Raises:
        DatabaseAway: the database does not answer.
    """
    database = Database(database_url)
    try:
        async with database.write() as connection:
            if database.dialect == "postgresql":
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            await connection.run_sync(_upgrade, package)
    finally:
        await database.close()


def _upgrade(connection: Connection, package: str) -> None:
    with resources.as_file(resources.files(package) / "migrations") as folder:
        script = ScriptDirectory(str(folder))

        def to_head(revision: tuple[str, ...], _context: MigrationContext) -> list[StampStep]:
            return script._upgrade_revs("head", revision)  # type: ignore[return-value, arg-type]

        with EnvironmentContext(Config(), script, fn=to_head) as environment:
            # Services may share a database; each keeps its own place.
            environment.configure(connection=connection, version_table="version_" + package.rpartition(".")[2])
            environment.run_migrations()
