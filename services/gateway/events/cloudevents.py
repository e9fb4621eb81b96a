"""CloudEvents 1.0.2 over HTTP: binary, structured and batch mode become envelopes with data.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md

Narrower than the specification, and stated in docs/api.md: data are JSON, and every attribute has a length.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError, model_validator
from starlette.datastructures import Headers

from bellhop.contracts.base import AnyJson, Contract, Id, Line, Time, now, storable
from bellhop.contracts.envelope import Envelope
from bellhop.web.problems import Problem, invalid
from bellhop.web.strict_json import parse
from services.gateway.acceptance.service import invalid_body

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
MAX_EVENTS = 1000
MAX_EXTENSIONS = 20

# The specification recommends 20 characters at most, and lets an event have more.
_EXTENSION = re.compile(r"[a-z0-9]{1,100}")
_JSON = re.compile(r"application/(json|[a-z0-9.+-]+\+json)|", re.IGNORECASE)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
MAX_TYPE_BYTES = 255
"""A type becomes a routing key, and AMQP has no longer ones."""


def _json_only(content_type: str) -> str:
    if _JSON.fullmatch(content_type.partition(";")[0].strip()) is None:
        raise ValueError("must be application/json, or end in +json: Bellhop carries no other data. Send them as JSON")
    return content_type


def _no_base64(value: Any) -> Any:
    raise ValueError("is not taken: Bellhop carries JSON data only. Send them as JSON in `data`")


def _routable(type_: str) -> str:
    if len(type_.encode()) > MAX_TYPE_BYTES:
        raise ValueError(f"must have at most {MAX_TYPE_BYTES} bytes in UTF-8")
    return type_


ATTRIBUTES = {
    "specversion": "1.0; binary mode only, as all of these",
    "id": "with `source`, the event's identity",
    "source": "who publishes it",
    "type": "such as order.placed",
    "time": "when it happened (RFC 3339)",
    "subject": "what it is about",
    "dataschema": "a URI",
}
"""What `/docs` says about the attributes that binary mode has as headers; `ce-<name>` may be an extension, too."""


class _Attributes(Contract):
    """The context attributes; everything else that is a plain value is an extension (CloudEvents 1.0.2, 3.)."""

    model_config = ConfigDict(extra="allow")

    specversion: Literal["1.0"]
    id: Id
    source: Annotated[Line, StringConstraints(max_length=255)]
    type: Annotated[Line, AfterValidator(_routable)]
    time: Time | None = None
    subject: Annotated[Line, StringConstraints(max_length=255)] | None = None
    datacontenttype: Annotated[str, AfterValidator(_json_only)] | None = None
    dataschema: Line | None = None
    data: AnyJson = None
    data_base64: Annotated[Any, AfterValidator(_no_base64)] = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, document: Any) -> Any:
        """An attribute that is null is one that is not there (JSON format 1.0.2, 2.2); data may be null."""
        if not isinstance(document, dict):
            return document
        return {name: value for name, value in document.items() if value is not None or name == "data"}

    @model_validator(mode="after")
    def _extensions_are_plain(self) -> "_Attributes":
        extra = self.model_extra or {}
        if len(extra) > MAX_EXTENSIONS:
            raise ValueError(f"at most {MAX_EXTENSIONS} extension attributes")
        for name, value in extra.items():
            if _EXTENSION.fullmatch(name) is None:
                raise ValueError(f"{name[:40]!r} is no attribute name: use 1 to 100 lower-case letters and digits")
            if not isinstance(value, str | int | bool) or (isinstance(value, str) and len(value) > 1024):
                raise ValueError(f"the extension attribute {name} must be a short string, an integer or a boolean")
            storable(value)
        return self


_ONE = TypeAdapter(_Attributes)
_MANY = TypeAdapter(list[_Attributes])


def read(headers: Headers, body: bytes) -> list[tuple[Envelope, Any]]:
    """Return the events of a request, one (envelope, data) each.

    Raises:
        Problem: 400, 415 or 422 for what is not CloudEvents 1.0 with JSON data.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == STRUCTURED:
            return [_event(_ONE.validate_python(parse(body)))]
        if kind == BATCH:
            document = parse(body)
            if isinstance(document, list) and len(document) > MAX_EVENTS:
                raise Problem(422, "Unprocessable Content", f"Send at most {MAX_EVENTS} events, not {len(document)}.")
            return [_event(one) for one in _MANY.validate_python(document)]
        # Data are optional, and without a body there are none.
        data = parse(body) if body else None
        return [_event(_ONE.validate_python({**_attributes(headers), "data": data}))]
    except ValidationError as error:
        raise invalid_body(error) from None


def _attributes(headers: Headers) -> dict[str, str]:
    """Return the attributes in the headers; raise Problem 422 unless there are some, each once and in UTF-8."""
    attributes: dict[str, str] = {}
    for name, value in headers.items():
        if not name.startswith("ce-"):
            continue
        if name[3:] in attributes:
            raise invalid([{"loc": ("header", name), "msg": "Send this header once."}])
        quoted = _QUOTED.fullmatch(value)
        text = value if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])
        try:
            attributes[name[3:]] = unquote(text, errors="strict")
        except UnicodeDecodeError:
            raise invalid([{"loc": ("header", name), "msg": "The bytes behind % must be UTF-8."}]) from None
    if not attributes:
        raise Problem(
            422,
            "Unprocessable Content",
            f"Binary mode needs the headers ce-specversion, ce-id, ce-source and ce-type; or use {STRUCTURED}.",
        )
    return attributes


def _event(attributes: _Attributes) -> tuple[Envelope, Any]:
    extensions = dict(attributes.model_extra or {})
    traceparent = extensions.pop("traceparent", None)
    if attributes.dataschema is not None:
        extensions["dataschema"] = attributes.dataschema
    time: datetime = attributes.time or now()
    envelope = Envelope(
        id=attributes.id,
        source=attributes.source,
        type=attributes.type,
        time=time,
        subject=attributes.subject,
        traceparent=traceparent if isinstance(traceparent, str) else None,
        extensions=extensions,
    )
    return envelope, attributes.data
