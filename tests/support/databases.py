"""Databases of tests: copies of a template with the tables of all services, so that no test waits for migrations."""

import fcntl
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from bellhop.catalog import WITH_TABLES
from bellhop.sql.migrations import migrate

TEMPLATE = "bellhop_template"
# Texts are ordered as in production, not by their bytes: a statement that means the bytes must say so.
EMPTY = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'"


async def make_template(server: str) -> None:
    """Make the database that `postgresql_copy` copies."""
    connection = await _administrator(server)
    try:
        await connection.execute(f"CREATE DATABASE {TEMPLATE} {EMPTY}")
    finally:
        await connection.close()
    await _migrate(f"{server}/{TEMPLATE}")


@asynccontextmanager
async def postgresql_database(server: str, *, empty: bool) -> AsyncIterator[str]:
    """Make a database and give its URL; delete it afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    connection = await _administrator(server)
    try:
        await connection.execute(f"CREATE DATABASE {name} {EMPTY if empty else f'TEMPLATE {TEMPLATE}'}")
        yield f"{server}/{name}"
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


async def sqlite_database(file: Path, session_folder: Path, *, empty: bool) -> str:
    """Return the URL of a database at `file`."""
    if not empty:
        shutil.copyfile(await _sqlite_template(session_folder), file)
    return f"sqlite+aiosqlite:///{file}"


async def _sqlite_template(folder: Path) -> Path:
    """Return the file to copy; the first worker that asks makes it."""
    template = folder / "template.db"
    if template.exists():
        return template
    with (folder / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            unfinished = folder / "unfinished.db"
            await _migrate(f"sqlite+aiosqlite:///{unfinished}")
            unfinished.rename(template)
    return template


async def _migrate(url: str) -> None:
    for service in WITH_TABLES:
        await migrate(url, f"services.{service}")


async def _administrator(server: str) -> asyncpg.Connection:
    return await asyncpg.connect(server.replace("+asyncpg", "") + "/postgres")
