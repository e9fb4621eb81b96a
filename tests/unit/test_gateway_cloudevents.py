"""The cases of the CloudEvents 1.0.2 HTTP binding and JSON format, and what is refused by choice."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from starlette.datastructures import Headers

from bellhop.contracts.envelope import Envelope
from bellhop.web.problems import Problem
from services.gateway.events.cloudevents import read

EVENT: dict[str, Any] = {"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b"}
BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "a.b"}


def structured(document: object, content_type: str = "application/cloudevents+json") -> tuple[Envelope, Any]:
    (event,) = read(Headers({"content-type": content_type}), orjson.dumps(document))
    return event


def binary(headers: dict[str, str], body: bytes = b"") -> tuple[Envelope, Any]:
    (event,) = read(Headers(headers), body)
    return event


def batch(document: object) -> list[tuple[Envelope, Any]]:
    return read(Headers({"content-type": "application/cloudevents-batch+json"}), orjson.dumps(document))


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+json", "application/cloudevents+json; charset=utf-8"]
)
def test_structured_mode(content_type: str) -> None:
    """All attributes stand in the document, and data are any JSON."""
    document = EVENT | {"time": "2018-04-05T03:56:24Z", "subject": "x", "data": {"a": [1, None]}}
    envelope, data = structured(document, content_type)
    assert (envelope.id, envelope.source, envelope.type, envelope.subject) == ("1", "/s", "a.b", "x")
    assert envelope.time == datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC)
    assert data == {"a": [1, None]}


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "application/x+json"])
def test_binary_mode(content_type: str) -> None:
    """Attributes are headers, the body is the data."""
    headers = {"content-type": content_type, "ce-time": "2018-04-05T03:56:24Z", "ce-tenant": "t1"}
    envelope, data = binary(BINARY | headers, b'{"a":1}')
    assert (envelope.id, envelope.source, envelope.type, envelope.time.year) == ("1", "/s", "a.b", 2018)
    assert (envelope.extensions, data) == ({"tenant": "t1"}, {"a": 1})


@pytest.mark.parametrize("more", [{}, {"content-type": "application/json"}])
def test_binary_mode_needs_no_data(more: dict[str, str]) -> None:
    """Data are optional, and so is the type of what is not there."""
    assert binary(BINARY | more)[1] is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("caf%C3%A9", "café"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ('"a b"', "a b"),
        (r'"a \"b\""', 'a "b"'),
    ],
)
def test_header_values_are_decoded(value: str, expected: str) -> None:
    """Quoted strings first, then percent-encoding (HTTP binding, 3.1.3.2)."""
    assert binary(BINARY | {"ce-subject": value})[0].subject == expected


def test_batch_mode() -> None:
    """Any number of events, of any types, in their order; none is no error."""
    events = batch([EVENT | {"data": None}, EVENT | {"id": "2", "type": "c.d"}])
    assert [(envelope.id, envelope.type) for envelope, _ in events] == [("1", "a.b"), ("2", "c.d")]
    assert batch([]) == []


def test_an_attribute_that_is_null_is_unset() -> None:
    """JSON format, 2.2; so a required one is missing then."""
    optional = dict.fromkeys(("time", "subject", "datacontenttype", "dataschema", "data_base64", "unsetextension"))
    envelope, _ = structured(EVENT | optional)
    assert (envelope.subject, envelope.extensions) == (None, {})
    with pytest.raises(Problem):
        structured(EVENT | {"id": None})


def test_extensions_of_every_type() -> None:
    """Strings, integers and booleans; a name may be longer than the 20 characters that are recommended."""
    extensions = {"comexampleextension1": "v", "n": -5, "flag": True, "anextensionof24character": "x"}
    assert structured(EVENT | extensions)[0].extensions == extensions


@pytest.mark.parametrize(
    "type_", ["com.github.pull.create", "https://example.com/x", "two words", "größer", "#", "x" * 255]
)
def test_any_type(type_: str) -> None:
    """The specification allows any text; ours has at most 255 bytes."""
    assert structured(EVENT | {"type": type_})[0].type == type_


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/vnd.a.b+json", "application/json;charset=utf-8"]
)
def test_data_are_json(content_type: str) -> None:
    """Every spelling of JSON is one."""
    assert structured(EVENT | {"datacontenttype": content_type, "data": 1})[1] == 1


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"specversion": "0.3"}, "#/specversion"),
        ({"id": ""}, "#/id"),
        ({"source": ""}, "#/source"),
        ({"type": ""}, "#/type"),
        ({"type": "ü" * 128}, "#/type"),
        ({"type": "a\nb"}, "#/type"),
        ({"time": 1}, "#/time"),
        ({"time": "1"}, "#/time"),
        ({"time": "yesterday"}, "#/time"),
        ({"data_base64": "AA=="}, "#/data_base64"),
        ({"datacontenttype": "application/xml", "data": "<a/>"}, "#/datacontenttype"),
        ({"Upper": "x"}, "#"),
        ({"with-hyphen": "x"}, "#"),
        ({"object": {}}, "#"),
        ({"fraction": 1.5}, "#"),
    ],
)
def test_what_is_refused_names_the_attribute(change: dict[str, Any], pointer: str) -> None:
    """422 for what the specification forbids, and for what is no JSON by our choice."""
    with pytest.raises(Problem) as refused:
        structured(EVENT | change)
    assert (refused.value.status, refused.value.extensions["errors"][0]["pointer"]) == (422, pointer)


def test_headers_are_refused_by_name() -> None:
    """No attributes at all, one of them twice, or bytes that are no text."""
    for headers in (
        Headers({"content-type": "application/json"}),
        Headers(BINARY | {"ce-subject": "%FF"}),
        Headers(raw=[*Headers(BINARY).raw, (b"ce-id", b"2")]),
    ):
        with pytest.raises(Problem) as refused:
            read(headers, b"")
        assert refused.value.status == 422
