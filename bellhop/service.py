"""Runs a service, which is described by a table: resources, queues, jobs and routes.

Start:  HTTP face, connections, `open`; then in the background, repeated until it succeeds: migrations, `prepare`,
        consumers, jobs.
Stop:   `stopping` is set; consumers finish what is in hand; jobs end; what `open` opened is closed; connections close.
"""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Generic, TypeVar

from fastapi import APIRouter, FastAPI

from bellhop.amqp.batches import BatchPuller, always
from bellhop.amqp.connection import Connection
from bellhop.amqp.consumer import Consumer
from bellhop.amqp.fields import patch_pika_field_decoding
from bellhop.amqp.message import Delivery
from bellhop.amqp.publisher import Publisher
from bellhop.background import LIMIT_SECONDS, Background
from bellhop.observe.logs import configure_logging
from bellhop.observe.traces import configure_traces
from bellhop.settings import ServiceSettings
from bellhop.sql.database import Database
from bellhop.sql.migrations import migrate
from bellhop.web.health import check
from bellhop.web.request_limits import Limits
from bellhop.web.server import create_app, serve

PREPARE_SECONDS = 3600.0
"""Limit of migrations and `prepare`: a migration of a large database takes long."""

S = TypeVar("S", bound=ServiceSettings)
P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Queue(Generic[P]):
    """A queue and the handler of each of its messages. Settling: `bellhop.amqp.handling`."""

    name: str
    handler: Callable[[P, Delivery], Awaitable[None]]
    prefetch: int = 50
    """Unacked deliveries, at most."""
    after: str | None = None
    """Another queue of the table; this one is consumed only when the messages in that one are handled."""


@dataclass(frozen=True, slots=True)
class Batches(Generic[P]):
    """A queue whose messages are handled in batches, each with one ack."""

    name: str
    handler: Callable[[P, list[Delivery]], Awaitable[None]]
    size: int
    """Messages in a batch, at most."""
    seconds: float
    """Time between two batches, at most."""
    counts: Callable[[Delivery], bool] = lambda _: True
    """Returns whether a message counts as pending."""
    usable: Callable[[P], Awaitable[None]] | None = None
    """Raises `Unavailable` while the handler could not work: another replica then gets the queue."""


@dataclass(frozen=True, slots=True)
class Job(Generic[P]):
    """Periodic work; see `Background.every` for the arguments."""

    name: str
    seconds: float
    action: Callable[[P], Awaitable[float | None]]
    wake: Callable[[P], asyncio.Event] | None = None
    limit: float = LIMIT_SECONDS


@dataclass(frozen=True, slots=True)
class Loop(Generic[P]):
    """Work that runs until the service stops; see `Background.keep`."""

    name: str
    run: Callable[[P], Awaitable[None]]


@dataclass(slots=True)
class Base(Generic[S]):
    """Open resources of a service. A service without queues has neither connections nor a database."""

    settings: S
    app: FastAPI
    consumers: list[Consumer | BatchPuller] = field(default_factory=list)
    """Consumers of the service's table, in its order; set when `Service.open` has returned."""
    consuming: Connection = field(init=False)
    publisher: Publisher = field(init=False)
    """A connection only for consumers: an alarm of the broker blocks the connection that publishes."""
    database: Database = field(init=False)
    """Set if the settings name a database."""

    @property
    def has_tables(self) -> bool:
        """Return whether the settings name a database."""
        return self.settings.database_url is not None

    @property
    def stopping(self) -> asyncio.Event:
        """Return the event that is set when the process receives a stop signal, before requests have ended."""
        event: asyncio.Event = self.app.state.stopping
        return event

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[None]:
        """Start the connections, and close them at the end. Does not wait until they are open."""
        url = self.settings.amqp_url.get_secret_value()
        self.consuming = Connection(url, f"bellhop/{name}/{self.settings.instance}/consume")
        publishing = Connection(url, f"bellhop/{name}/{self.settings.instance}/publish")
        self.publisher = Publisher(publishing, window=2000)
        if self.settings.database_url is not None:
            self.database = Database(self.settings.database_url.get_secret_value())
        await publishing.start()
        await self.consuming.start()
        try:
            yield
        finally:
            await self.consuming.close()
            await publishing.close()
            if self.has_tables:
                await self.database.close()


async def _nothing(_parts: Any) -> None:
    return None


async def _no_checks(_parts: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Service(Generic[S, P]):
    """The table of one service."""

    name: str
    settings: type[S]
    open: Callable[[Base[S]], AbstractAsyncContextManager[P]]
    """Opens the parts that handlers, jobs and routes use, and closes them."""
    routers: Sequence[APIRouter] = ()
    queues: Callable[[P], Sequence[Queue[P] | Batches[P]]] | None = None
    """Its queues. None: it has neither queues nor a database."""
    jobs: Callable[[P], Sequence[Job[P] | Loop[P]]] = lambda _: ()
    prepare: Callable[[P], Awaitable[None]] = _nothing
    """Runs after the migrations and before anything is consumed; idempotent."""
    ready: Callable[[P], Awaitable[dict[str, str]]] = _no_checks
    """Returns checks for /readyz besides those that all services have: broker, database, queues."""
    limits: Callable[[S], Limits] = lambda _: Limits()
    counted_by_route: Sequence[str] = ()
    """Paths whose routes count their requests against the rate limits themselves."""

    def create_app(self, settings: S) -> FastAPI:
        """Return the application; its lifespan starts and stops the service."""
        return create_app(
            f"Bellhop {self.name}",
            version("bellhop"),
            partial(self._run, settings),
            self.routers,
            limits=self.limits(settings),
            counted_by_route=self.counted_by_route,
        )

    @asynccontextmanager
    async def _run(self, settings: S, app: FastAPI) -> AsyncIterator[None]:
        background: Background = app.state.background
        base = Base(settings, app)
        async with base.opened(self.name) if self.queues else nullcontext(), self.open(base) as parts:
            for row in self.queues(parts) if self.queues else ():
                base.consumers.append(_consumer(row, parts, base))
            app.state.ready = partial(self._checks, parts, base)
            background.once("preparation", partial(self._prepare, parts, base), limit=PREPARE_SECONDS)
            try:
                yield
            finally:
                base.stopping.set()
                await background.end("preparation")
                await asyncio.gather(*(each.stop(settings.shutdown_seconds) for each in base.consumers))
                # After the consumers: heartbeats must continue while messages are handled.
                await background.stop()

    async def _prepare(self, parts: P, base: Base[S]) -> None:
        background: Background = base.app.state.background
        if self.queues is not None and base.has_tables:
            await migrate(base.database.url, f"services.{self.name}")
        await self.prepare(parts)
        for consumer in base.consumers:
            consumer.start()
        for job in self.jobs(parts):
            if isinstance(job, Loop):
                background.keep(job.name, partial(job.run, parts))
            else:
                wake = job.wake(parts) if job.wake else None
                background.every(job.name, job.seconds, partial(job.action, parts), wake=wake, limit=job.limit)

    async def _checks(self, parts: P, base: Base[S]) -> dict[str, str]:
        checks = {}
        if self.queues is not None:
            idle = [each.queue for each in base.consumers if not each.works]
            checks = {
                "broker": base.publisher.failure or base.consuming.explanation,
                "queues": f"not consuming from {', '.join(idle)}" if idle else "ok",
            }
            if base.has_tables:
                checks["database"] = await check(base.database.ping)
        return checks | await self.ready(parts)


def _consumer(row: Queue[P] | Batches[P], parts: P, base: Base[Any]) -> Consumer | BatchPuller:
    handler = partial(row.handler, parts)
    if isinstance(row, Batches):
        return BatchPuller(
            base.consuming,
            base.publisher,
            row.name,
            handler,
            size=row.size,
            interval=row.seconds,
            counts=row.counts,
            usable=partial(row.usable, parts) if row.usable else always,
        )
    first = next((each for each in base.consumers if each.queue == row.after), None)
    assert not isinstance(first, BatchPuller), "only a queue whose messages are handled one by one can come first"
    return Consumer(base.consuming, base.publisher, row.name, handler, prefetch=row.prefetch, after=first)


def run(name: str, settings_type: type[S], build: Callable[[S], FastAPI]) -> None:
    """Run service `name` until SIGTERM or SIGINT. Blocks.

    HTTP is served from the start, so that /healthz answers, and /readyz reports what the service waits for.

    Raises:
        SystemExit: it cannot start; the text is a sentence for the operator.
    """
    settings = settings_type.load()
    configure_logging(name, settings)
    configure_traces(name, settings)
    patch_pika_field_decoding()
    app = build(settings)
    _tune_interpreter()
    serve(app, settings)


def _tune_interpreter() -> None:
    """Tune CPython for one busy event loop beside a few threads of database drivers."""
    # The thread of the database driver requests the interpreter's lock many times a commit, and by default waits up to
    # 5 ms each time; 0.5 ms makes a commit several times as fast.
    sys.setswitchinterval(0.0005)
    # Each request in flight has about a hundred objects, which the cycle collector traverses repeatedly: a fifth of
    # all CPU time under load. Few objects are cyclic, so it runs less often, and skips the objects of the start-up.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
