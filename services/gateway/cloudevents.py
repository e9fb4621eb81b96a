"""CloudEvents 1.0.2 over HTTP: binary, structured and batch mode become envelopes with data.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError, model_validator

from bellhop.contracts.base import AnyJson, Contract, EventType, Id, Line, Time, now, storable
from bellhop.contracts.envelope import Envelope
from bellhop.web.problems import Problem
from bellhop.web.strict_json import parse
from services.gateway.intake import invalid_body

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
MAX_EVENTS = 1000
MAX_EXTENSIONS = 20

_EXTENSION = re.compile(r"[a-z0-9]{1,20}")
_NO_BASE64 = "data_base64 is not taken: send the data as JSON in `data`"


def _json_only(content_type: str) -> str:
    if content_type.partition(";")[0].strip().lower() not in ("application/json", ""):
        raise ValueError("must be application/json: events carry JSON here")
    return content_type


class _Attributes(Contract):
    """The context attributes; everything else that is a plain value is an extension (CloudEvents 1.0.2, 3.)."""

    model_config = ConfigDict(extra="allow")

    specversion: Literal["1.0"]
    id: Id
    source: Annotated[Line, StringConstraints(max_length=255)]
    type: EventType
    time: Time | None = None
    subject: Annotated[Line, StringConstraints(max_length=255)] | None = None
    datacontenttype: Annotated[str, AfterValidator(_json_only)] | None = None
    dataschema: Line | None = None
    data: AnyJson = None

    @model_validator(mode="after")
    def _extensions_are_plain(self) -> "_Attributes":
        extra = self.model_extra or {}
        if "data_base64" in extra:
            raise ValueError(_NO_BASE64)
        if len(extra) > MAX_EXTENSIONS:
            raise ValueError(f"at most {MAX_EXTENSIONS} extension attributes")
        for name, value in extra.items():
            if _EXTENSION.fullmatch(name) is None:
                raise ValueError(f"{name[:40]!r} is no attribute name: use 1 to 20 lower-case letters and digits")
            if not isinstance(value, str | int | bool) or (isinstance(value, str) and len(value) > 1024):
                raise ValueError(f"the extension attribute {name} must be a short string, an integer or a boolean")
            storable(value)
        return self


_ONE = TypeAdapter(_Attributes)
_MANY = TypeAdapter(list[_Attributes])


def read(headers: Mapping[str, str], body: bytes) -> list[tuple[Envelope, Any]]:
    """Return the events of a request, one (envelope, data) each.

    Raises:
        Problem: 400, 415 or 422 for what is not CloudEvents 1.0 with JSON data.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    document = parse(body)
    try:
        if kind == STRUCTURED:
            return [_event(_ONE.validate_python(document))]
        if kind == BATCH:
            if isinstance(document, list) and not 1 <= len(document) <= MAX_EVENTS:
                raise Problem(422, "Unprocessable Content", f"Send 1 to {MAX_EVENTS} events, not {len(document)}.")
            return [_event(one) for one in _MANY.validate_python(document)]
        attributes = {name[3:]: unquote(value) for name, value in headers.items() if name.startswith("ce-")}
        if not attributes:
            raise Problem(
                422,
                "Unprocessable Content",
                f"Binary mode needs the headers ce-specversion, ce-id, ce-source and ce-type; or use {STRUCTURED}.",
            )
        return [_event(_ONE.validate_python({**attributes, "data": document}))]
    except ValidationError as error:
        raise invalid_body(error) from None


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
