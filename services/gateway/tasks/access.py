"""Access to tasks: each kind has its own scopes."""

from collections.abc import Callable

from starlette.requests import Request

from bellhop.contracts.kinds import KINDS, TaskKind
from bellhop.web.auth import Caller, Require, Scope, identify_caller


class TaskScope(Require):
    """Accepts callers that have the scope of at least one kind; `check` is for the kind of a task."""

    def __init__(self, scope_of: Callable[[TaskKind], str]) -> None:
        super().__init__(Scope(scope_of(next(iter(KINDS.values())))))
        self._scope_of = scope_of

    async def identify(self, request: Request) -> Caller:
        """Count the request and return its caller; raise Problem 401, 403 or 429."""
        caller = await identify_caller(request)
        if not self.kinds(caller):
            caller.check(self.scope)
        return caller

    def kinds(self, caller: Caller) -> list[str]:
        """Return the names of the kinds whose scope `caller` has."""
        return [name for name, kind in KINDS.items() if caller.may(Scope(self._scope_of(kind)))]

    def check(self, caller: Caller, kind: str) -> None:
        """Raise Problem 403, which names the scope, unless `caller` has the scope of this kind."""
        caller.check(Scope(self._scope_of(KINDS[kind])))


READ = TaskScope(lambda kind: kind.read_scope)
ACT = TaskScope(lambda kind: kind.act_scope)


def known_kind(name: str) -> str:
    """Return `name`.

    Raises:
        ValueError: there is no such kind.
    """
    if name not in KINDS:
        raise ValueError(f"must be one of {', '.join(KINDS)}")
    return name
