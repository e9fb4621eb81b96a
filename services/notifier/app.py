"""The notifier: one copy of the stream in, many live readers out.

notifier.log (stream) -> Reader -> Hub (over Log) -> Stream   GET /v1/stream
                                                  -> Socket       /v1/ws
                                                  -> Poll     GET /v1/poll
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bellhop.background import Background
from bellhop.web.limits import Limits
from bellhop.web.problems import Problem, problem_response
from bellhop.web.server import create_app
from services.notifier import routes, streams
from services.notifier.hub import Hub
from services.notifier.log import Log
from services.notifier.reader import Reader
from services.notifier.settings import NotifierSettings
from services.notifier.streams import Live
from services.notifier.subscribers import keep_transport

LIMITS = Limits()

# What does not go through FastAPI, and why: services/notifier/streams.py.
STREAMS = {
    ("http", "/v1/stream"): streams.sse,
    ("websocket", "/v1/ws"): streams.websocket,
}


def build(settings: NotifierSettings) -> FastAPI:
    """Put the service together."""
    window = Log(events=settings.window_events, size=settings.window_bytes, seconds=settings.window_seconds)
    hub = Hub(
        window,
        max_subscribers=settings.max_subscribers,
        max_per_subject=settings.max_subscribers_per_subject,
        ping_seconds=settings.ping_seconds,
    )
    reader = Reader(
        hub,
        settings.amqp_url.get_secret_value(),
        name=f"bellhop/notifier/{settings.instance}/stream",
        window_seconds=settings.window_seconds,
        live_types=settings.live_types,
    )

    async def ready() -> dict[str, str]:
        return {"stream": reader.status}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.ready = ready
        background: Background = app.state.background
        background.keep("reading the stream", reader.run)
        background.every("pinging", 1.0, hub.tick)
        background.keep("ending the streams", partial(_drain, app, hub))
        yield

    app = create_app(
        "notifier",
        version("bellhop"),
        lifespan,
        [routes.router, routes.pages],
        limits=LIMITS,
        counted_by_route=["/v1/poll"],
    )
    live = app.state.live = Live(
        hub,
        app.state.limiter,
        settings.token_key.get_secret_value(),
        settings.slow_reader_bytes,
        origins=tuple(settings.live_origins),
    )
    app.openapi()["paths"]["/v1/stream"] = routes.STREAM_DOCUMENT
    # Around everything else, because a stream must not go through it.
    app.middleware_stack = _doors(app.build_middleware_stack(), live)
    return app


def _doors(fastapi: ASGIApp, live: Live) -> ASGIApp:
    def choose(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        serve = STREAMS.get((scope["type"], scope.get("path", "")))
        return serve(live, scope, receive, send) if serve else fastapi(scope, receive, send)

    return keep_transport(
        _Cors(choose, allow_origins=live.origins, allow_headers=["Authorization", "Last-Event-ID"], max_age=600)
    )


class _Cors(CORSMiddleware):
    """Starlette's CORS, whose refusals are problem documents."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer what a browser asks before a request from another site's page."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        detail = (
            "Pages of this origin may not make this request, or not with this method or these headers. The setting"
            " BELLHOP_LIVE_ORIGINS lists the origins; GET with Authorization and Last-Event-ID is allowed to them."
        )
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return problem_response(Problem(400, "Bad Request", detail, headers=kept))


async def _drain(app: FastAPI, hub: Hub) -> None:
    """End all streams when the process is told to stop: uvicorn would wait for them."""
    await app.state.stopping.wait()
    hub.drain("The notifier is being restarted. Connect again and resume from the last id.")
