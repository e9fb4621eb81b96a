"""The notifier: reads the stream once and forwards its events to many live readers.

notifier.log (stream) -> Reader -> Hub (over Log) -> Stream   GET /v1/stream
                                                  -> Socket       /v1/ws
                                                  -> Poll     GET /v1/poll
"""

from functools import partial

from fastapi import FastAPI

from bellhop.service import Job, Loop, Service
from bellhop.web.request_limits import Limits
from services.notifier import routes
from services.notifier.doors import with_streams
from services.notifier.parts import Notifier, make_hub, open_notifier
from services.notifier.settings import NotifierSettings
from services.notifier.transports import ReaderContext

LIMITS = Limits()


async def ready(notifier: Notifier) -> dict[str, str]:
    """Return the notifier's own checks for /readyz."""
    return {"stream": notifier.reader.status}


async def tick(notifier: Notifier) -> None:
    """End expired streams and ping quiet ones."""
    await notifier.hub.tick()


async def end_streams(notifier: Notifier) -> None:
    """End all streams when the process receives a stop signal: uvicorn would wait for them."""
    await notifier.base.stopping.wait()
    notifier.hub.drain("The notifier is being restarted. Connect again and resume from the last id.")


JOBS: tuple[Job[Notifier] | Loop[Notifier], ...] = (
    Loop("reading the stream", lambda notifier: notifier.reader.run()),
    Job("pinging", 1.0, tick),
    Loop("ending the streams", end_streams),
)


def build(settings: NotifierSettings) -> FastAPI:
    """Return the application."""
    hub = make_hub(settings)
    service = Service(
        "notifier", NotifierSettings, partial(open_notifier, hub=hub), [routes.router, routes.pages],
        jobs=lambda _: JOBS, ready=ready, counted_by_route=["/v1/poll"], limits=lambda _: LIMITS,
    )  # fmt: skip
    app = service.create_app(settings)
    key = settings.token_key.get_secret_value()
    live = ReaderContext(hub, app.state.limiter, key, settings.slow_reader_bytes, origins=tuple(settings.live_origins))
    app.state.live = live
    app.openapi()["paths"]["/v1/stream"] = routes.STREAM_DOCUMENT
    # Outermost, because streams must not pass through other middleware.
    app.middleware_stack = with_streams(app.build_middleware_stack(), live)
    return app
