"""What holds for the OpenAPI documents of all faces: clients are generated from them."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.unit.test_routes import APPS

DOCUMENTS: dict[str, dict[str, Any]] = {name: app.openapi() for name, app in APPS.items()}
OPERATIONS = [
    pytest.param(name, method, path, operation, id=f"{name} {method.upper()} {path}")
    for name, document in DOCUMENTS.items()
    for path, operations in document["paths"].items()
    for method, operation in operations.items()
]


def references(value: Any) -> Iterator[str]:
    """Yield every `$ref` in a document."""
    if isinstance(value, dict):
        if isinstance(found := value.get("$ref"), str):
            yield found
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def is_typed(schema: dict[str, Any]) -> bool:
    """Say whether a schema says more than that there is an object."""
    if "anyOf" in schema:
        return all(map(is_typed, schema["anyOf"]))
    return "$ref" in schema or schema.get("type") not in (None, "object") or "properties" in schema


@pytest.mark.parametrize(("name", "method", "path", "operation"), OPERATIONS)
def test_every_operation_declares_its_answer(name: str, method: str, path: str, operation: dict[str, Any]) -> None:
    """A schema for JSON, a media type for streams, nothing for 204; and a summary that somebody wrote."""
    successes = {status: answer for status, answer in operation["responses"].items() if status.startswith("2")}
    assert successes
    for status, answer in successes.items():
        content = answer.get("content", {})
        if status == "204":
            assert not content
            continue
        assert content, f"{status} has no content"
        for media_type, found in content.items():
            assert media_type != "application/json" or is_typed(found.get("schema", {})), f"{status} is not typed"
    generated = {
        route.name.replace("_", " ").title() for route in APPS[name].router.routes if isinstance(route, APIRoute)
    }
    assert operation["summary"] not in generated | {""}, "the summary is the name of the function"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_reference_is_dangling(name: str) -> None:
    """Every `$ref` leads to a component, and every component is used."""
    document = DOCUMENTS[name]
    found = {f"#/components/schemas/{schema}" for schema in document["components"]["schemas"]}
    assert set(references(document)) == found


def test_all_faces_have_one_version_and_one_naming() -> None:
    """The version of the package, and titles like `Bellhop gateway`."""
    versions = {document["info"]["version"] for document in DOCUMENTS.values()}
    titles = {name: document["info"]["title"] for name, document in DOCUMENTS.items()}
    assert versions == {version("bellhop")}
    assert titles == {name: f"Bellhop {name}" for name in DOCUMENTS}


@pytest.mark.parametrize("forwarded", ["leaderboard", "mailer"])
def test_what_the_gateway_forwards_is_documented_as_where_it_is_answered(forwarded: str) -> None:
    """Parameters, bodies and answers of an operation that two faces have are the same."""
    of_gateway, of_service = DOCUMENTS["gateway"], DOCUMENTS[forwarded]
    shared = {path for path in of_service["paths"] if path.startswith("/v1/")}
    assert shared
    for path in sorted(shared):
        for method, operation in of_service["paths"][path].items():
            ours = of_gateway["paths"][path][method]
            parameters = [each for each in ours.get("parameters", []) if each["in"] != "header"]
            assert parameters == operation.get("parameters", []), f"{method} {path}"
            assert ours.get("requestBody") == operation.get("requestBody"), f"{method} {path}"
            answers = {status: each for status, each in ours["responses"].items() if status.startswith("2")}
            theirs = {status: each for status, each in operation["responses"].items() if status.startswith("2")}
            assert answers == theirs, f"{method} {path}"
    for schema, found in of_service["components"]["schemas"].items():
        assert of_gateway["components"]["schemas"].get(schema, found) == found, schema


READ_OF_ALL = {"authorization", "content-type", "content-encoding", "host", "origin", "traceparent"}
"""Standard headers of any request, which OpenAPI does not list as parameters."""
_HEADER = re.compile(r"request\.headers\.get(?:list)?\(\"([a-z-]+)\"")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_header_that_a_service_reads_is_documented(name: str) -> None:
    """Found in the code of its routes."""
    read = {
        header for path in Path(f"services/{name}").rglob("*.py") for header in _HEADER.findall(path.read_text("utf-8"))
    }
    documented = {
        parameter["name"].lower()
        for _, operations in DOCUMENTS[name]["paths"].items()
        for operation in operations.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "header"
    }
    assert read - READ_OF_ALL <= documented


def test_every_post_of_the_gateway_documents_its_idempotency_key() -> None:
    """As docs/api.md says of any POST."""
    for path, operations in DOCUMENTS["gateway"]["paths"].items():
        if "post" in operations:
            names = [parameter["name"] for parameter in operations["post"].get("parameters", [])]
            assert "Idempotency-Key" in names, path
