"""The way in: streams and sockets pass around FastAPI, everything else through it."""

from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bellhop.web.problems import Problem, problem_response
from services.notifier import streams
from services.notifier.streams import Live
from services.notifier.subscribers import keep_transport

# What does not go through FastAPI, and why: services/notifier/streams.py.
STREAMS = {
    ("http", "/v1/stream"): streams.sse,
    ("websocket", "/v1/ws"): streams.websocket,
}


def with_streams(fastapi: ASGIApp, live: Live) -> ASGIApp:
    """Return an application that serves `STREAMS` from `live`, and all else by `fastapi`."""

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
