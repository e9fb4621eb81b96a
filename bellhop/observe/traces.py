"""Traces by OpenTelemetry; disabled, and without cost, unless BELLHOP_OTLP_ENDPOINT is set.

Requests and messages carry `traceparent` (W3C Trace Context), which joins the spans of all services to one trace.
Names and attributes are those of OpenTelemetry's semantic conventions. Spans contain the route, and no path, query,
address or body: those contain tokens and personal data.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from bellhop.settings import ServiceSettings

tracer: Tracer | None = None
"""None if traces are disabled: callers check it before they make a span, so disabled traces cost one comparison."""

EXPORT_SECONDS = 5.0
"""Limit of one export, with its retries; also of the last one, at exit."""

_W3C = TraceContextTextMapPropagator()


def configure_traces(service: str, settings: ServiceSettings) -> None:
    """Install the OTLP exporter if `otlp_endpoint` is set; pending spans are flushed at exit.

    The SDK's own variables, such as OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS, apply as well.

    Raises:
        SystemExit: the packages of the extra `otel` are missing.
    """
    global tracer
    if settings.otlp_endpoint is None:
        return
    try:
        # Imported here: they are an extra, and take 10 MB.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"BELLHOP_OTLP_ENDPOINT is set, but the package for it is missing ({error.name}). Install the extra `otel`,"
            " as in `uv sync --extra otel`, or unset the variable."
        ) from None
    about = {
        "service.namespace": "bellhop",
        "service.name": service,
        "service.version": version("bellhop"),
        "service.instance.id": settings.instance,
    }
    provider = TracerProvider(resource=Resource.create(about))
    endpoint = settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=EXPORT_SECONDS)))
    # Its warnings report each attempt; its errors report spans that are lost.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    tracer = provider.get_tracer("bellhop", version("bellhop"))


def context_of(traceparent: str | None) -> Context:
    """Return the context for children of `traceparent`; None: an empty one, in which a span begins a trace."""
    return _W3C.extract({} if traceparent is None else {"traceparent": traceparent}, Context())


def traceparent_of(span: Span) -> str:
    """Return the `traceparent` for children of `span` (https://www.w3.org/TR/trace-context/)."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current() -> str | None:
    """Return the `traceparent` of the current span; None without one."""
    span = trace.get_current_span()
    return traceparent_of(span) if span.get_span_context().is_valid else None


def failed(span: Span, kind: str) -> None:
    """Set the status of `span` to error; `kind` is a value of `error.type`, of low cardinality."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


@contextmanager
def surrounding(span: Span) -> Iterator[Span]:
    """Make `span` the current one, and end it afterwards; an exception marks it as failed, by the name of its type."""
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except BaseException as error:
            failed(span, type(error).__name__)
            raise


@contextmanager
def client_span(tracer: Tracer, name: str, attributes: Mapping[str, AttributeValue]) -> Iterator[Span]:
    """Make a client span around a request to another server."""
    with surrounding(tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)) as span:
        yield span
