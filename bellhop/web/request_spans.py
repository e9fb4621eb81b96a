"""Spans of HTTP requests."""

from collections.abc import Collection

from opentelemetry.trace import SpanKind
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bellhop.observe import traces

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _WatchedSend:
    """An ASGI `send` that records the status of the answer."""

    __slots__ = ("_send", "status")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        """HTTP status; 0 until the answer starts, and if the client disconnects before."""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class RequestSpans:
    """Middleware: a server span for every HTTP request, which continues the client's trace."""

    def __init__(self, app: ASGIApp, exempt: Collection[str]) -> None:
        """`exempt`: paths without spans, such as health checks."""
        self.app = app
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        tracer = traces.tracer
        if tracer is None or scope["type"] != "http" or scope["path"] in self._exempt:
            await self.app(scope, receive, send)
            return
        watched = _WatchedSend(send)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        traceparent = Headers(scope=scope).get("traceparent")
        about = {"http.request.method": method, "url.scheme": scope["scheme"]}
        span = tracer.start_span(method, traces.context_of(traceparent), SpanKind.SERVER, about)
        with traces.surrounding(span):
            try:
                await self.app(scope, receive, watched)
            finally:
                # The route is known only after routing.
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                if watched.status:
                    span.set_attribute("http.response.status_code", watched.status)
                if watched.status >= 500:
                    traces.failed(span, str(watched.status))
