"""Structured logs on standard output, as text (console) or JSON, with secrets masked."""

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from bellhop.settings import ServiceSettings

# Passwords in URLs, secrets of API keys (their ids are public), bearer tokens, JWTs. Each pattern begins with a literal
# and is bounded, so that its cost on a long line is linear.
_SECRETS = (
    (re.compile(r"(?<=://)([^\s:/@]{0,256}):[^\s/]{1,1024}@"), r"\1:***@"),
    (re.compile(r"(bh_[A-Za-z0-9]{8})_[A-Za-z0-9_-]{1,128}"), r"\1_***"),
    (re.compile(r"(?i)\b(bearer)\s{1,8}[A-Za-z0-9._~+/=-]{8,4096}"), r"\1 ***"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{1,4096}\.[A-Za-z0-9_-]{1,16384}\.[A-Za-z0-9_-]{0,4096}"), "***"),
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")

# Their `info` lines do not help an operator, or repeat ours. uvicorn warns of every request that is not HTTP, so any
# client could fill the log.
_QUIET = dict.fromkeys(
    ("pika", "aio_pika", "aiormq", "aiosqlite", "alembic", "httpx", "httpcore", "asyncio"), logging.WARNING
)
# These log a lost connection as errors with tracebacks; `bellhop.amqp` logs it in one line.
_QUIET |= dict.fromkeys(("pika.adapters", "pika.connection", "aiormq.connection"), logging.CRITICAL)
_QUIET["uvicorn.error"] = logging.ERROR


def redact(text: str) -> str:
    """Return `text` with every password, key and token masked."""
    for pattern, mask in _SECRETS:
        text = pattern.sub(mask, text)
    return text


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module: `get_logger(__name__)`. Events are sentences; values are keyword arguments."""
    return structlog.stdlib.get_logger(name)


def configure_logging(service: str, settings: ServiceSettings) -> None:
    """Write all logs of this process, by structlog and by the standard library, to standard output."""
    console = settings.log_format == "console"
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _name_process(service, settings.instance, console),
    ]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if console else [structlog.processors.format_exc_info]),
                _one_line_event,
                renderer,
                _redact_line,  # last, on the rendered line, which contains all values
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _name_process(service: str, instance: str, console: bool) -> Processor:
    def name_process(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        if not console:
            event["instance"] = instance
        return event

    return name_process


def _one_line_event(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escape line breaks: a client's text must not add lines to the log."""
    event["event"] = _CONTROL.sub(lambda match: repr(match.group())[1:-1], str(event.get("event", "")))
    return event


def _redact_line(_: WrappedLogger, __: str, line: Any) -> str:
    return redact(str(line))
