"""Routes that take plain JSON and the query parameters they declare, and read them only for callers who may ask."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable
from inspect import iscoroutinefunction
from typing import Any, ClassVar

import orjson
from fastapi import params
from fastapi.datastructures import DefaultPlaceholder
from fastapi.dependencies.utils import get_flat_params, request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute, serialize_response
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Guard
from bellhop.web.json_text import parse
from bellhop.web.problems import Problem, invalid

__all__ = ["AnyQueryRoute", "StrictRequest", "StrictRoute", "check_content_type", "parse", "unknown_parameters"]

_NUL = "must not contain NUL (U+0000)"
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose JSON is read by `parse`."""

    async def json(self) -> Any:
        """Return the body's value; raise Problem 400 or 422."""
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A FastAPI route for JSON: 415 for anything else, 400 or 422 for what `parse` refuses.

    A query parameter that the function does not declare is 422: a filter that is misspelled and ignored would return,
    or change, more than was asked for.

    FastAPI reads a body before it asks any dependency; here the `Guard` is asked first, so that nobody without a key
    learns anything from an answer, or makes this process parse a megabyte. A request without a guard is counted by its
    address.

    FastAPI's way from a request to a function and back takes half of all the time that a small request takes,
    most of it for what such a function does not use. A function whose only dependencies are guards is therefore
    called directly: with the same fields, the same validation and the same documents at /docs.
    """

    any_query: ClassVar[bool] = False
    """Whether parameters that are not declared are ignored."""
    _included = False

    def get_route_handler(self) -> Handler:
        """Return what turns a request into a response."""
        general = self._general(super().get_route_handler())
        # FastAPI asks a second time where a router is included in another, which may add dependencies. Those are
        # known to its own handler alone.
        first, self._included = not self._included, True
        return self._direct() if first and self._is_simple() else general

    def _is_simple(self) -> bool:
        needs = self.dependant
        return (
            iscoroutinefunction(self.endpoint)
            and isinstance(self.response_class, DefaultPlaceholder)
            and all(isinstance(each.call, Guard) for each in needs.dependencies)
            and len(needs.body_params) <= 1
            and not self._embed_body_fields
            and not needs.http_connection_param_name
            and not needs.response_param_name
            and not needs.background_tasks_param_name
            and not needs.security_scopes_param_name
        )

    def _general(self, handler: Handler) -> Handler:
        """Put the checks in front of FastAPI's handler."""
        guard = next((each.call for each in self.dependant.dependencies if isinstance(each.call, Guard)), None)
        takes_json = self.body_field is not None
        check = self._check_parameters()

        async def general(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            if "\0" in request.scope["path"]:
                raise Problem(404, "Not Found", "There is nothing at a path with NUL (U+0000) in it.")
            if guard is not None:
                await guard(request)
            else:
                request.app.state.limiter.count_rest(request.scope)
            if request.scope["query_string"] and (wrong := check(request)):
                raise invalid(wrong)
            check_encoding(request)
            if takes_json and await request.body():
                check_content_type(request)
            return await handler(request)

        return general

    def _direct(self) -> Handler:
        """Do what FastAPI does (`fastapi.routing.get_request_handler`), for functions that need no more than this."""
        needs = self.dependant
        guards = [(each.name, each.call) for each in needs.dependencies if isinstance(each.call, Guard)]
        sources: list[tuple[list[Any], Callable[[Request], Any]]] = [
            (needs.path_params, lambda request: request.path_params),
            (needs.query_params, lambda request: request.query_params),
            (needs.header_params, lambda request: request.headers),
            (needs.cookie_params, lambda request: request.cookies),
        ]
        parameters = [(fields, source) for fields, source in sources if fields]
        body_name = needs.body_params[0].name if needs.body_params else None
        body_field = self.body_field
        check = self._check_parameters()

        async def direct(request: Request) -> Response:
            request = StrictRequest(request.scope, request.receive)
            if "\0" in request.scope["path"]:
                raise Problem(404, "Not Found", "There is nothing at a path with NUL (U+0000) in it.")
            values: dict[str, Any] = {}
            errors: list[Any] = []
            for name, guard in guards:
                caller = await guard(request)
                if name is not None:
                    values[name] = caller
            if not guards:
                request.app.state.limiter.count_rest(request.scope)
            check_encoding(request)
            if request.scope["query_string"]:
                errors += check(request)
            for fields, source in parameters:
                found, wrong = request_params_to_args(fields, source(request))
                values.update(found)
                errors += wrong
            if body_field is not None and body_name is not None:
                value, wrong = await _read_body(request, body_field)
                values[body_name] = value
                errors += wrong
            if errors:
                raise RequestValidationError(errors)
            if needs.request_param_name is not None:
                values[needs.request_param_name] = request
            result = await self.endpoint(**values)
            return result if isinstance(result, Response) else await self._respond(result)

        return direct

    def _check_parameters(self) -> Callable[[Request], list[dict[str, Any]]]:
        """Return what finds the query parameters that this route does not take, or not with such a value."""
        parameters = get_flat_params(self.dependant)
        known = [field.alias for field in parameters if isinstance(field.field_info, params.Query)]
        any_query = self.any_query

        def wrong(request: Request) -> list[dict[str, Any]]:
            pairs = request.query_params.multi_items()
            # No store of ours can hold it, so nothing can be found by it.
            nul = [
                {"loc": ("query", name), "msg": "must not contain NUL (U+0000)"}
                for name, value in pairs
                if "\0" in value
            ]
            return nul if any_query else nul + unknown_parameters([name for name, _ in pairs], known)

        return wrong

    async def _respond(self, result: Any) -> Response:
        content = await serialize_response(
            field=self.response_field,
            response_content=result,
            include=self.response_model_include,
            exclude=self.response_model_exclude,
            by_alias=self.response_model_by_alias,
            exclude_unset=self.response_model_exclude_unset,
            exclude_defaults=self.response_model_exclude_defaults,
            exclude_none=self.response_model_exclude_none,
            dump_json=True,
        )
        status = self.status_code or 200
        if status in (204, 304):
            return Response(status_code=status)
        return Response(
            content if self.response_field else orjson.dumps(content, option=orjson.OPT_UTC_Z),
            status,
            media_type="application/json",
        )


class AnyQueryRoute(StrictRoute):
    """A route that ignores query parameters that it does not know.

    For pages that people open from mails, because mail programs and trackers add parameters to links, and for requests
    that another service answers, because it checks the parameters itself.
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


async def _read_body(request: Request, field: Any) -> tuple[Any, list[Any]]:
    """Return the validated body, or what is wrong with it."""
    if not await request.body():
        if field.field_info.is_required():
            return None, [{"loc": ("body",), "msg": "is required"}]
        return field.get_default(), []
    check_content_type(request)
    validated: tuple[Any, list[Any]] = field.validate(await request.json(), loc=("body",))
    return validated


def check_encoding(request: Request) -> None:
    """Raise Problem 415 if the body is compressed: a kilobyte of it could stand for a gigabyte."""
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
    """Raise Problem 415 unless the request says that its body is JSON in UTF-8."""
    content_types = request.headers.getlist("content-type")
    if len(content_types) != 1 or not _JSON.fullmatch(content_types[0].strip()):
        raise Problem(
            415,
            "Unsupported Media Type",
            "The body must be JSON in UTF-8 and say so. Send it with Content-Type: application/json.",
            headers={"Accept": "application/json"},
        )
