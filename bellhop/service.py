"""How every service starts: settings, logs, schema, HTTP face."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import FastAPI

from bellhop.observe.logs import configure_logging, get_logger
from bellhop.settings import ServiceSettings
from bellhop.sql.database import DatabaseAway
from bellhop.sql.migrations import migrate
from bellhop.web.server import serve

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)

WAIT_SECONDS = 2.0


def run(name: str, settings_type: type[SettingsT], build: Callable[[SettingsT], FastAPI]) -> None:
    """Run service `name` until it is told to stop; does not return before."""
    settings = settings_type.load()
    configure_logging(name, settings)
    if settings.database_url is not None:
        asyncio.run(_migrate(name, settings.database_url.get_secret_value()))
    serve(build(settings), settings)


async def _migrate(name: str, database_url: str) -> None:
    """Bring the schema up to date, and wait for a database that is not up yet."""
    log = get_logger(__name__)
    waiting = False
    while True:
        try:
            await migrate(database_url, f"services.{name}")
        except DatabaseAway as error:
            if not waiting:
                log.warning("waiting for the database", reason=str(error))
            waiting = True
            await asyncio.sleep(WAIT_SECONDS)
        else:
            return
