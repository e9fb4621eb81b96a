"""What a plain route refuses to be declared with."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends
from starlette.responses import Response

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.plain_route import PlainRoute

Admin = Annotated[Caller, Depends(require(Scope.ADMIN))]


async def without_a_guard() -> Response:
    return Response()


async def with_a_dependency(caller: Admin, limit: Annotated[int, Depends(lambda: 1)]) -> Response:
    return Response()


def that_blocks(caller: Admin) -> Response:
    return Response()


async def that_returns_a_value(caller: Admin) -> dict[str, str]:
    return {}


@pytest.mark.parametrize("endpoint", [without_a_guard, with_a_dependency, that_blocks, that_returns_a_value])
def test_what_it_would_not_obey_is_refused(endpoint: Callable[..., Any]) -> None:
    """When the module is imported, not when the first request comes."""
    with pytest.raises(TypeError, match=endpoint.__name__):
        APIRouter(route_class=PlainRoute).get("/")(endpoint)


def test_dependencies_of_its_router_are_refused() -> None:
    """They would guard nothing."""
    router = APIRouter(route_class=PlainRoute, dependencies=[Depends(lambda: None)])

    async def endpoint(caller: Admin) -> Response:
        return Response()

    with pytest.raises(TypeError, match="endpoint"):
        router.get("/")(endpoint)
