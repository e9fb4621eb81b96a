"""Routes for the most frequent requests, with little overhead between the server and the function."""

from collections.abc import Callable
from inspect import Parameter, iscoroutinefunction, signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError, create_model
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bellhop.web.problems import invalid
from bellhop.web.strict_json import StrictRequest, StrictRoute, check_content_type, parse


class PlainRoute(StrictRoute):
    """A `StrictRoute` that calls its function itself, because FastAPI takes most of the time of a small request.

    The function is declared as for FastAPI, which documents it. It is a coroutine that returns a Response. Its
    parameters are the value of its one guard and, optionally: the request, one body that is a model, path parameters,
    query parameters, and one `Annotated[Model, Query()]`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        super().__init__(path, endpoint, **declared)
        self.app = self._plain()

    def _plain(self) -> ASGIApp:
        endpoint: Callable[..., Any] = self.endpoint
        check = self.checks()
        if not iscoroutinefunction(endpoint) or len(self.dependant.dependencies) != 1 or len(self.guards) != 1:
            raise TypeError(f"Declare {endpoint.__qualname__} as a coroutine with one guard and no other dependency.")
        (caller_name,) = self.guards
        request_name = body_name = query_name = None
        query_model: type[BaseModel] = BaseModel
        body_model: type[BaseModel] = BaseModel
        fields: dict[str, Any] = {}
        hints = get_type_hints(endpoint, include_extras=True)
        if not issubclass(hints["return"], Response):
            raise TypeError(f"Let {endpoint.__qualname__} return a Response: nothing turns other values into one.")
        for name, parameter in signature(endpoint).parameters.items():
            hint = hints[name]
            if hint is Request:
                request_name = name
            elif isinstance(hint, type) and issubclass(hint, BaseModel):
                body_name, body_model = name, hint
            elif (model := _model_of(hint)) is not None:
                query_name, query_model = name, model
            elif name != caller_name:
                fields[name] = (hint, ... if parameter.default is Parameter.empty else parameter.default)
        parameters = create_model("Parameters", **fields) if fields else None

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            request = StrictRequest(scope, receive)
            values: dict[Any, Any] = {caller_name: await check(request)}
            errors: list[Any] = []
            if parameters is not None:
                in_path = scope["path_params"]
                try:
                    values |= parameters.model_validate({**request.query_params, **in_path}).__dict__
                except ValidationError as error:
                    for each in error.errors():
                        where = "path" if each["loc"][0] in in_path else "query"
                        errors.append({**each, "loc": (where, *each["loc"])})
            if query_name is not None:
                try:
                    values[query_name] = query_model.model_validate(dict(request.query_params))
                except ValidationError as error:
                    errors += [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
            if body_name is not None:
                if body := await request.body():
                    check_content_type(request)
                    try:
                        values[body_name] = body_model.model_validate(parse(body))
                    except ValidationError as error:
                        errors += [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
                else:
                    errors.append({"loc": ("body",), "msg": "is required"})
            if errors:
                raise invalid(errors)
            if request_name is not None:
                values[request_name] = request
            response = await endpoint(**values)
            await response(scope, receive, send)

        return app


def _model_of(hint: Any) -> type[BaseModel] | None:
    """Return the model of an `Annotated[Model, Query()]`."""
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else None
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
