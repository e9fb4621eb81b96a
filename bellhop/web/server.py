"""Create the application of a service, and serve it."""

import asyncio
import errno
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.util import find_spec
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from starlette.middleware import Middleware

from bellhop.background import Background
from bellhop.observe import traces
from bellhop.observe.logs import get_logger
from bellhop.observe.metrics import describe_build, watch_loop
from bellhop.settings import ServiceSettings
from bellhop.web import health, problems
from bellhop.web.auth import Caller
from bellhop.web.edge import Edge
from bellhop.web.head import HeadAsGet
from bellhop.web.protocol import LimitedProtocol
from bellhop.web.rate_limit import Limiter
from bellhop.web.request_limits import BodyLimit, Limits
from bellhop.web.request_spans import RequestSpans
from bellhop.web.strict_json import StrictRoute

log = get_logger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
_LOOPBACK = ["127.0.0.1", "::1"]
_MAX_FRAME = 64 * 1024


def create_app(
    title: str,
    version: str,
    lifespan: Lifespan,
    routers: Sequence[APIRouter],
    *,
    limits: Limits = Limits(),
    counted_by_route: Collection[str] = (),
) -> FastAPI:
    """Return the application: the routes of `routers`, health checks, and the middleware of all services.

    The routers must have been made with `route_class=StrictRoute`. `counted_by_route`: paths whose routes
    call `app.state.limiter` themselves.

    In its lifespan the service sets, before it serves:

        app.state.authenticate   async (key) -> Caller | None; until then no key is valid
        app.state.ready          async () -> {name: "ok" or a sentence}, for /readyz

    It runs its loops in `app.state.background`, a `Background`, which it may stop before the end of its lifespan,
    and may wait for `app.state.stopping`, an `asyncio.Event` that is set when the server has drained (`serve`):
    uvicorn then waits for streams that are open, so they must end by themselves.
    """
    limiter = Limiter(limits.key_rate, limits.subject_rate, limits.address_rate)
    app = FastAPI(
        title=title,
        version=version,
        lifespan=_with_background(lifespan),
        redoc_url=None,
        # A path with an extra slash is a wrong path. A redirect would go to the name in the Host header of the client.
        redirect_slashes=False,
        # Traces, metrics and logs are our own: FastAPI's spans would show paths and queries, tokens included.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # The order is from the outside in:
        #   RequestSpans    only with tracing; outermost, so that the span covers everything else
        #   Edge            counts, limits and answers
        #   BodyLimit       limits the body that the route reads
        #   HeadAsGet       innermost: for all others the request is a HEAD
        # Outside of them: the protocol's limits on head and time, and uvicorn's proxy headers, which set the address
        # that is counted. Inside: FastAPI's exception handlers, then the route, which checks the key before it reads
        # the body.
        middleware=[
            *([] if traces.tracer is None else [Middleware(RequestSpans, exempt=health.PATHS)]),
            Middleware(Edge, limiter=limiter, exempt=health.PATHS, counted_by_route=frozenset(counted_by_route)),
            Middleware(BodyLimit, size=limits.body, sizes=limits.bodies, in_hand=limits.bodies_in_hand),
            Middleware(HeadAsGet),
        ],
    )
    app.state.limits = limits
    app.state.limiter = limiter
    app.state.authenticate = _no_caller
    app.state.ready = _no_checks
    app.state.background = Background()
    app.state.draining = False
    app.state.stopping = asyncio.Event()
    app.router.route_class = StrictRoute
    # Not include_router: it keeps a tree of routers, each of which is matched twice for every request. Before FastAPI's
    # own pages, because every route before the matching one costs time.
    app.router.routes[:0] = [route for router in (*routers, health.router) for route in router.routes]
    problems.install(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    describe_build(title)
    return app


async def _no_caller(key: str) -> Caller | None:
    del key
    return None


async def _no_checks() -> dict[str, str]:
    return {}


def _with_background(lifespan: Lifespan) -> Lifespan:
    @asynccontextmanager
    async def watched(app: FastAPI) -> AsyncIterator[None]:
        # An application may be started more than once, in tests.
        background = app.state.background = Background()
        app.state.draining = False
        app.state.stopping = asyncio.Event()
        background.keep("measuring the event loop", watch_loop)
        try:
            async with lifespan(app):
                yield
        finally:
            await background.stop()

    return watched


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with problem documents instead of FastAPI's own errors."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = FastAPI.openapi(app)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = problems.SCHEMA
    answer = {
        "description": "an error (RFC 9457)",
        "content": {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = answer
    return document


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Serve `app` until SIGTERM or SIGINT, then drain for `settings.drain_seconds`, then stop.

    While it drains, /readyz and /healthz return 503, so that load balancers choose another replica. Requests that
    still arrive are answered, and each answer closes its connection. Without draining, a request could find a closed
    port, or an idle connection that is being closed. Then running requests have `settings.shutdown_seconds` to end.

    Exits with code 1 and an error message if it cannot listen on the address.
    """
    listener = _listen(settings.host, settings.port)
    # uvicorn shuts down and then raises the signal again, which would end the process with an error. A service that
    # stopped because of a signal has succeeded.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: None)
    proxies = [str(network) for network in settings.trusted_proxies]
    server = Server(app, listener, settings.shutdown_seconds, proxies, drain_seconds=settings.drain_seconds)
    server.run(sockets=[listener])


class Server(uvicorn.Server):
    """A uvicorn server that logs its address, drains, and sets `app.state.stopping` when it begins to stop."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        shutdown_seconds: float,
        trusted_proxies: Sequence[str] = (),
        *,
        drain_seconds: float = 0.0,
    ) -> None:
        self._protocol: type[LimitedProtocol] = type("Protocol", (LimitedProtocol,), {"limits": app.state.limits})
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=self._protocol,
                ws="websockets-sansio" if find_spec("websockets") else "none",
                ws_max_size=_MAX_FRAME,
                ws_per_message_deflate=False,  # it would cost 300 KB of memory for every connection
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                headers=[("x-content-type-options", "nosniff")],
                proxy_headers=True,
                forwarded_allow_ips=[*_LOOPBACK, *trusted_proxies],
                timeout_keep_alive=65,  # longer than clients and proxies keep idle connections: they close first
                timeout_graceful_shutdown=math.ceil(shutdown_seconds),
            )
        )
        self._app = app
        self._listener = listener
        self._drain_seconds = drain_seconds

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, stop accepting connections, finish the running requests, stop the application."""
        await self._drain()
        # Before uvicorn waits for open connections: streams end only when this event is set.
        self._app.state.stopping.set()
        log.info("stopping", seconds=self.config.timeout_graceful_shutdown)
        await super().shutdown(sockets)

    async def _drain(self) -> None:
        self._app.state.draining = True
        self._protocol.draining = True
        if not self._drain_seconds:
            return
        log.info("draining", seconds=self._drain_seconds)
        for connection in self.server_state.connections:
            if isinstance(connection, LimitedProtocol):  # not a WebSocket
                connection.close_after_answer()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_seconds
        # Polling, because a second Ctrl-C sets `force_exit` in a signal handler and no event.
        while loop.time() < end and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SystemExit(
                f"Port {port} on {host} is in use. End the other program, or set BELLHOP_PORT to a free port."
            ) from None
        raise SystemExit(
            f"Cannot listen on {host}, port {port}: {error.strerror}. Set BELLHOP_HOST and BELLHOP_PORT to an address"
            " of this machine."
        ) from None
    return listener
