"""Declarations of the leaderboard routes, for the leaderboard, which answers, and the gateway, which forwards."""

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path
from starlette.responses import Response

from bellhop.contracts.leaderboards import Operation
from bellhop.contracts.scores import PathName
from bellhop.web.auth import Caller, Scope, require

Reader = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.LEADERBOARDS_WRITE))]
Board = Annotated[PathName, Path(description="name of the board")]
Player = Annotated[PathName, Path(description="name of the player")]

F = TypeVar("F", bound=Callable[..., Awaitable[Response]])


def route(router: APIRouter, operation: Operation) -> Callable[[F], F]:
    """Return the decorator of the function that answers `operation`; its signature declares parameters and body."""
    status, *_ = operation.answers
    return router.api_route(
        operation.path,
        methods=[operation.method],
        summary=operation.summary,
        description=operation.description,
        status_code=status,
        responses={code: {"model": model} for code, model in operation.answers.items() if model is not None},
    )
