"""Routes that accept only strict JSON and declared query parameters, and check the caller before they read a body.

This file uses undocumented parts of FastAPI: the route's `dependant`, `body_field` and `get_flat_params`.
tests/unit/test_private_parts.py lists them.
"""

import re
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, ClassVar

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.base import NUL
from bellhop.web.auth import Guard
from bellhop.web.json_text import parse
from bellhop.web.problems import Problem, invalid

__all__ = ["AnyQueryRoute", "StrictRequest", "StrictRoute", "check_content_type", "parse", "unknown_parameters"]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose JSON is parsed by `parse`."""

    async def json(self) -> Any:
        """Return the body's value; raise Problem 400 or 422."""
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A FastAPI route for JSON: 415 for another content type, 400 or 422 for JSON that `parse` refuses.

    A query parameter that the function does not declare is answered with 422: if a misspelled filter was ignored, the
    route would return, or change, more than the client wanted.

    FastAPI reads a body before it calls any dependency. Here the `Guard` is called first, so that a caller without a
    key gets no information from an answer, and cannot make this process parse a megabyte. A request to a route without
    a guard is counted by its address.
    """

    any_query: ClassVar[bool] = False
    """Whether parameters that are not declared are ignored."""

    @property
    def guards(self) -> dict[str | None, Guard]:
        """The guards, by the name of the function's parameter for their value."""
        return {each.name: each.call for each in self.dependant.dependencies if isinstance(each.call, Guard)}

    def get_route_handler(self) -> Handler:
        """Return the function that answers a request."""
        handler = super().get_route_handler()
        takes_json = self.body_field is not None
        check = self.checks()

        async def strict(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            await check(request)
            if takes_json and await request.body():
                check_content_type(request)
            return await handler(request)

        return strict

    def checks(self) -> Callable[[Request], Awaitable[Any]]:
        """Return the function that checks a request before its body is read; it returns the value of the guard.

        It raises Problem: 404 for NUL in the path, that of the guard, 415, 422 for query parameters.
        """
        guard = next(iter(self.guards.values()), None)
        # They include the fields of a model of query parameters, which are of no special class.
        others = (params.Path, params.Header, params.Cookie)
        known = [field.alias for field in get_flat_params(self.dependant) if not isinstance(field.field_info, others)]
        any_query = self.any_query

        async def check(request: Request) -> Any:
            scope = request.scope
            if "\0" in scope["path"]:
                raise Problem(404, "Not Found", "There is nothing at a path with NUL (U+0000) in it.")
            caller = None
            if guard is not None:
                caller = await guard(request)
            else:
                request.app.state.limiter.count_rest(scope)
            check_encoding(request)
            if scope["query_string"]:
                pairs = request.query_params.multi_items()
                # The databases cannot store NUL, so no row can match.
                wrong = [{"loc": ("query", name), "msg": NUL} for name, value in pairs if "\0" in value]
                if not any_query:
                    wrong += unknown_parameters([name for name, _ in pairs], known)
                if wrong:
                    raise invalid(wrong)
            return caller

        return check


class AnyQueryRoute(StrictRoute):
    """A route that ignores undeclared query parameters.

    For pages that are opened from mails, because mail programs and trackers add parameters to links, and for requests
    that are forwarded to another service, which checks the parameters itself.
    """

    any_query = True


def unknown_parameters(given: Iterable[str], known: Collection[str]) -> list[dict[str, Any]]:
    """Return an error for each name that is not known, or given more than once."""
    there = f"it takes {', '.join(known)}" if known else "it takes none"
    counts = Counter(given)
    return [
        {"loc": ("query", name), "msg": f"There is no such parameter here; {there}."}
        for name in counts
        if name not in known
    ] + [
        {"loc": ("query", name), "msg": "must be given only once"}
        for name, count in counts.items()
        if count > 1 and name in known
    ]


def check_encoding(request: Request) -> None:
    """Raise Problem 415 if the body is compressed: a kilobyte could decompress to a gigabyte."""
    encoding = request.headers.get("content-encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise Problem(
            415,
            "Unsupported Media Type",
            "Bodies are not decompressed here. Send it plain, without Content-Encoding.",
            headers={"Accept-Encoding": "identity"},
        )


_JSON = re.compile(r"application/(?:json|[a-z0-9.+-]{1,64}\+json)(?:\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)


def check_content_type(request: Request) -> None:
    """Raise Problem 415 unless the Content-Type of the request is JSON in UTF-8."""
    content_types = request.headers.getlist("content-type")
    if len(content_types) != 1 or not _JSON.fullmatch(content_types[0].strip()):
        raise Problem(
            415,
            "Unsupported Media Type",
            "The body must be JSON in UTF-8 and say so. Send it with Content-Type: application/json.",
            headers={"Accept": "application/json"},
        )
