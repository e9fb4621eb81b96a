"""ASGI routing: streams and sockets bypass FastAPI, all other requests pass through it."""

from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bellhop.web.problems import Problem, problem_response
from services.notifier import transports
from services.notifier.subscribers import keep_transport
from services.notifier.transports import ReaderContext

# Why these bypass FastAPI: services/notifier/transports.py.
STREAMS = {
    ("http", "/v1/stream"): transports.sse,
    ("websocket", "/v1/ws"): transports.websocket,
}


def with_streams(fastapi: ASGIApp, live: ReaderContext) -> ASGIApp:
    """Return an application that serves `STREAMS` itself, and all other paths by `fastapi`."""

    def choose(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        serve = STREAMS.get((scope["type"], scope.get("path", "")))
        return serve(live, scope, receive, send) if serve else fastapi(scope, receive, send)

    return keep_transport(
        _Cors(choose, allow_origins=live.origins, allow_headers=["Authorization", "Last-Event-ID"], max_age=600)
    )


class _Cors(CORSMiddleware):
    """Starlette's CORS, whose refusals are problem documents."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer a CORS preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        detail = (
            "Pages of this origin may not make this request, or not with this method or these headers. The setting"
            " BELLHOP_LIVE_ORIGINS lists the origins; GET with Authorization and Last-Event-ID is allowed to them."
        )
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        return problem_response(Problem(400, "Bad Request", detail, headers=kept))
