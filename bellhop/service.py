"""How every service starts: settings, logs, HTTP face."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import FastAPI

from bellhop.observe.logs import configure_logging
from bellhop.settings import ServiceSettings
from bellhop.web.server import serve

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def run(name: str, settings_type: type[SettingsT], build: Callable[[SettingsT], FastAPI]) -> None:
    """Run service `name` until it is told to stop; ends the process with a sentence where it cannot start.

    The HTTP face is up from the start, so that /healthz answers and /readyz says what the service waits for.
    """
    settings = settings_type.load()
    configure_logging(name, settings)
    serve(build(settings), settings)
