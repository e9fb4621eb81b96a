"""How every service starts: settings, logs, HTTP face."""

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

from fastapi import FastAPI

from bellhop.amqp.fields import patch_pika_field_decoding
from bellhop.observe.logs import configure_logging
from bellhop.observe.traces import configure_traces
from bellhop.settings import ServiceSettings
from bellhop.web.server import serve

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def run(name: str, settings_type: type[SettingsT], build: Callable[[SettingsT], FastAPI]) -> None:
    """Run service `name` until it is told to stop; ends the process with a sentence where it cannot start.

    The HTTP face is up from the start, so that /healthz answers and /readyz says what the service waits for.
    """
    settings = settings_type.load()
    configure_logging(name, settings)
    configure_traces(name, settings)
    patch_pika_field_decoding()
    app = build(settings)
    _tune_interpreter()
    serve(app, settings)


def _tune_interpreter() -> None:
    """Set what CPython leaves at values for programs unlike ours: one busy event loop beside a few driver threads."""
    # The database driver's thread asks the busy loop for the interpreter many times a commit. By default it waits
    # 5 ms each time; a tenth of that makes a commit several times as fast.
    sys.setswitchinterval(0.0005)
    # Every request in flight is some hundred objects that the cycle collector would walk again and again: a fifth of
    # all CPU time under load. Little here is cyclic; the collector looks less often, and never at what stays.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
