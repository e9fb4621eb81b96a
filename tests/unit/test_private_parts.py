"""What this project uses of its libraries beyond their documentation, each library's in one file.

pyproject.toml holds each library below the next version whose private parts were not looked at. Those of pika and pamqp
are in test_amqp_fields.py.
"""

import re
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from fastapi import APIRouter, Depends, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute
from uvicorn.protocols.http import httptools_impl as uvicorn

from bellhop.contracts.base import Contract
from bellhop.web.auth import Scope, require

ROOT = Path(__file__).parents[2]


def moved(library: str, name: str, file: str) -> str:
    return f"{library} has no {name} any more: change {file}, which relies on it."


@pytest.mark.parametrize(("library", "bound"), [("fastapi", "0.166"), ("uvicorn", "0.55"), ("alembic", "1.21")])
def test_each_library_has_an_upper_bound(library: str, bound: str) -> None:
    """A version that was not looked at is not installed."""
    assert re.search(rf'"{library}>=[0-9.]+,<{re.escape(bound)}"', (ROOT / "pyproject.toml").read_text())


async def endpoint(body: Contract, caller: object = Depends(require(Scope.ADMIN)), limit: int = 1) -> None:
    """Has one of each that is looked at."""


def test_fastapi() -> None:
    """`bellhop/web/strict_json.py` asks a route for its guards, its query parameters and whether it has a body."""
    file = "bellhop/web/strict_json.py"
    router = APIRouter()
    router.post("/")(endpoint)
    (route,) = router.routes
    assert isinstance(route, APIRoute)
    for name in ("dependant", "body_field", "app"):
        assert hasattr(route, name), moved("FastAPI", f"APIRoute.{name}", file)
    assert [(each.name, each.call.scope) for each in route.dependant.dependencies] == [("caller", Scope.ADMIN)], moved(
        "FastAPI", "Dependant.dependencies with name and call", file
    )
    fields = [(field.alias, type(field.field_info)) for field in get_flat_params(route.dependant)]
    assert fields == [("limit", params.Query)], moved("FastAPI", "get_flat_params with alias and field_info", file)


def test_uvicorn() -> None:
    """`bellhop/web/protocol.py` hooks into the parser's callbacks and into the state of a connection and a request."""
    file = "bellhop/web/protocol.py"
    assert uvicorn.STATUS_LINE[408].startswith(b"HTTP/1.1 408 "), moved("uvicorn", "STATUS_LINE", file)
    for name in (
        "connection_made", "connection_lost", "data_received", "handle_websocket_upgrade", "on_message_begin", "on_url",
        "on_header", "on_headers_complete", "on_message_complete", "send_400_response",
    ):  # fmt: skip
        assert callable(getattr(uvicorn.HttpToolsProtocol, name, None)), moved(
            "uvicorn", f"HttpToolsProtocol.{name}", file
        )
    connection = {"timeout_keep_alive_task", "cycle", "url", "headers", "parser", "transport", "loop"}
    cycle = {"response_started", "response_complete", "disconnected", "message_event", "keep_alive"}
    for kind, names in ((uvicorn.HttpToolsProtocol, connection), (uvicorn.RequestResponseCycle, cycle)):
        methods = [each for each in vars(kind).values() if hasattr(each, "__code__")]
        used = {name for method in methods for name in method.__code__.co_names}
        for name in names:
            assert name in used, moved("uvicorn", f"{kind.__name__}.{name}", file)


def test_alembic() -> None:
    """`bellhop/sql/migrations.py` asks for the steps to a revision without a configuration file."""
    assert callable(getattr(ScriptDirectory, "_upgrade_revs", None)), moved(
        "Alembic", "ScriptDirectory._upgrade_revs", "bellhop/sql/migrations.py"
    )
