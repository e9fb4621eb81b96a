"""Problem documents: every error answer is `application/problem+json` (RFC 9457), and is made here.

Problem                  raised by our code: what is wrong and what to do
RequestValidationError   of FastAPI: a 422 that names each wrong field and repeats no value
HTTPException            of Starlette: 404 for an unknown path, 405 for a wrong method
Unavailable              a dependency is unavailable: 503 with Retry-After
anything else            a defect: 500 with a number; the reason is logged one time, with the same number
"""

import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from bellhop.errors import Unavailable
from bellhop.web.sentences import sentence

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
"""Maximum number of wrong fields in an answer: a body of 1,000 wrong scores must not cause an answer of a megabyte."""
MAX_POINTER = 256
_MAX_REASON = 100
"""Maximum length of the reason in the close frame of a WebSocket, which has room for 123 bytes (RFC 6455, 5.5)."""

log = logging.getLogger(__name__)

SCHEMA: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "default": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What is wrong and what to do about it."},
        "instance": {"type": "string", "format": "uri-reference", "description": "Names this one occurrence."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "`#/field` in the body, or `query:name` and so on."},
                    "detail": {"type": "string"},
                },
            },
        },
    },
}
"""JSON schema of a problem document, for the OpenAPI document."""


# An HTTPException, so that FastAPI lets it pass when it is raised while a body is being read.
class Problem(HTTPException):
    """An error answer. `detail` is a sentence for the client: what is wrong and what to do about it.

    `type` is `about:blank` if the status is sufficient, else a URI that names this kind of problem;
    `extensions` are further members of the document.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        type: str = "about:blank",
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.status = status
        self.title = title
        self.type = type
        self.extensions = extensions or {}


def unavailable(detail: str) -> Problem:
    """Return the 503 that asks the client to try again shortly."""
    return Problem(503, "Service Unavailable", f"{detail} Try again shortly.", headers={"Retry-After": "2"})


def problem_response(problem: Problem) -> Response:
    """Return the HTTP response with the document of `problem`."""
    document = {
        "type": problem.type,
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        **problem.extensions,
    }
    return Response(_encode(document), problem.status, problem.headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make `app` answer every error inside its routes with a problem document.

    For errors outside of them, in middleware, `Edge` does that.
    """
    # Starlette calls the same handler with a Request or a WebSocket, which its types cannot express.
    app.add_exception_handler(Problem, _on_problem)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http_exception)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Unavailable, _on_unavailable)


async def _on_unavailable(_request: Request, error: Exception) -> Response:
    return problem_response(unavailable(f"Nothing was done: {error}."))


async def _on_problem(connection: Request | WebSocket, error: Exception) -> Response | None:
    assert isinstance(error, Problem)
    response = problem_response(error)
    if not isinstance(connection, WebSocket):
        return response
    if connection.application_state is WebSocketState.CONNECTING:
        await connection.send_denial_response(response)
    else:
        await connection.close(1008, error.detail[:_MAX_REASON])
    return None


async def _on_http_exception(connection: Request | WebSocket, error: Exception) -> Response | None:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail, headers = error.detail, error.headers
    if error.status_code == 404 and detail == title:
        detail = "No route matches this path. /docs lists the routes."
    elif error.status_code == 405:
        # Each route with GET also answers HEAD.
        allowed = re.sub(r"\bGET\b", "GET, HEAD", (headers or {}).get("Allow", "another method"))
        detail = f"This path does not support the method. It takes {allowed}."
        headers = {**(headers or {}), "Allow": allowed}
    return await _on_problem(connection, Problem(error.status_code, title, detail, headers=headers))


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_response(invalid(error.errors()))


def invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Return the 422 that lists the errors of pydantic, without any value that the client sent.

    A field of the body is named by a JSON pointer (RFC 6901, as a URI fragment), anything else by its place and its
    name, as in `query:limit`.
    """
    count = len(errors)
    detail = "The request is not valid; `errors` names each wrong field and says why."
    if count > MAX_ERRORS:
        detail = f"{detail} Listed are the first {MAX_ERRORS} of {count}."
    listed = [{"pointer": _pointer(error["loc"]), "detail": sentence(error)} for error in errors[:MAX_ERRORS]]
    return Problem(422, "Unprocessable Content", detail, extensions={"errors": listed})


def _pointer(location: Sequence[int | str]) -> str:
    where, *path = location
    if where == "body":
        return pointer(path)
    return f"{where}:{'.'.join(map(str, path))}"[:MAX_POINTER]


def pointer(path: Sequence[int | str]) -> str:
    """Return the JSON pointer to `path` in a document, as a URI fragment like `#/scores/0/player`."""
    return ("#" + "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path))[:MAX_POINTER]


def _encode(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:
        # The text contains a lone surrogate from a query string or a header.
        return orjson.dumps({key: _encodable(value) for key, value in document.items()})


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    return value
