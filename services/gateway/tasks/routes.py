"""Tasks of every kind: show and list them, cancel them, and start another round."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Annotated, Any, cast, overload

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, WithJsonSchema
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.base import LATEST
from bellhop.contracts.kinds import KINDS
from bellhop.contracts.outcomes import State, TaskEvent
from bellhop.web.auth import Caller, Scope
from bellhop.web.cursors import Cursor, CursorText
from bellhop.web.deadline import extend
from bellhop.web.documents import header
from bellhop.web.problems import Problem
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.broadcasts.store import Phase
from services.gateway.parts import gateway
from services.gateway.tasks.access import ACT, READ, TaskScope, known_kind
from services.gateway.tasks.progress import state_after
from services.gateway.tasks.rows import TaskRow
from services.gateway.tasks.schemas import TaskAnswer, TasksAnswer, TaskStateAnswer

router = APIRouter(route_class=IdempotentRoute, tags=["tasks"])

MAX_WAIT_SECONDS = 55
"""A long poll ends before the usual idle timeout of proxies, 60 s."""

# Outcomes that another replica applied wake no waiter here, so each waiter reads again this often.
POLL_SECONDS = 1.0

_PAGES = Cursor("tasks", int, str)
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "It is as `If-None-Match` says."}}
WAIT_HEADERS = {
    "parameters": [
        header("Prefer", "`wait=25`, in place of the query parameter (RFC 7240)"),
        header("If-None-Match", "the `ETag` of the last answer: 304 where nothing has changed"),
    ]
}
_WAIT = re.compile(r"\bwait=(\d{1,4})\b")


def owner_of(caller: Caller) -> str | None:
    """Return whose tasks `caller` may see: its own; None, which means all tasks, for the administrator."""
    return None if caller.may(Scope.ADMIN) else caller.name


@overload
def time_of(ms: int) -> str: ...


@overload
def time_of(ms: int | None) -> str | None: ...


def time_of(ms: int | None) -> str | None:
    """Return milliseconds since 1970 as RFC 3339 in UTC, with `Z`: the form of all times in answers.

    Rows stored before times were bounded may hold one that cannot be written: then the nearest valid time is shown,
    because one such row must not make a whole list fail.
    """
    if ms is None:
        return None
    at = datetime.fromtimestamp(min(max(ms, _FIRST_MS), _LAST_MS) / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


_FIRST_MS = round(datetime(1, 1, 1, tzinfo=UTC).timestamp() * 1000)
_LAST_MS = round(LATEST.timestamp() * 1000)


def task_document(task: TaskRow) -> TaskAnswer:
    """Return a task as clients see it."""
    document: dict[str, object] = {
        "id": task["id"],
        "kind": task["kind"],
        "state": task["state"],
        "round": task["round"],
        "attempt": task["attempt"],
        "to": task["recipient"],
        "lane": task["lane"],
        "template": task["template"],
        "event_id": task["event_id"],
        "event_source": task["event_source"],
        "broadcast_id": task["broadcast_id"],
        "uncertain": task["uncertain"],
        "created_at": time_of(task["created_at"]),
        "updated_at": time_of(task["updated_at"]),
        "send_at": time_of(task["send_at"]),
        "finished_at": time_of(task["finished_at"]),
    }
    if "attempts" in task:
        document["attempts"] = [
            {
                "round": attempt["round"],
                "attempt": attempt["attempt"],
                "state": attempt["state"],
                "at": time_of(attempt["at"]),
                "code": attempt["code"],
                "enhanced": attempt["enhanced"],
                "reply": attempt["reply"],
                "relay": attempt["relay"],
                "retry_at": time_of(attempt["retry_at"]),
                "uncertain": attempt["uncertain"],
            }
            for attempt in task["attempts"]
        ]
    return cast(TaskAnswer, {name: value for name, value in document.items() if value is not None})


def _etag(task: TaskRow) -> str:
    return f'"{task["round"]}.{task["attempt"]}.{task["state"]}.{task["updated_at"]}"'


def wait_seconds(request: Request, wait: int | None) -> tuple[int, bool]:
    """Return how long the client wants to wait, and whether it asked by `Prefer: wait=` (RFC 7240, 4.3)."""
    preferred = None if wait is not None else _WAIT.search(request.headers.get("prefer", ""))
    seconds = min(int(preferred[1]), MAX_WAIT_SECONDS) if preferred else wait or 0
    extend(request.scope, seconds)
    return seconds, preferred is not None


@router.get(
    "/v1/tasks/{task_id}",
    summary="The state of a task",
    responses={200: {"model": TaskAnswer}, **UNCHANGED},
    openapi_extra=WAIT_HEADERS,
)
async def show(
    request: Request,
    task_id: str,
    caller: Annotated[Caller, Depends(READ)],
    wait: Annotated[int | None, Query(ge=0, le=MAX_WAIT_SECONDS)] = None,
) -> Response:
    """Return the task with all its attempts.

    With `?wait=25` or `Prefer: wait=25` the answer comes when the task is final, or changed against
    `If-None-Match`, or after so many seconds.
    """
    seconds, preferred = wait_seconds(request, wait)
    known = request.headers.get("if-none-match")
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        task = await _find(request, task_id, caller, READ)
        tag = _etag(task)
        remaining = deadline - asyncio.get_running_loop().time()
        changed = known is not None and known != tag
        if changed or State(task["state"]).final or remaining <= 0 or await request.is_disconnected():
            break
        await gateway(request).waiters.wait(task_id, min(remaining, POLL_SECONDS))
    headers = {"ETag": tag, "Cache-Control": "no-store"}
    if preferred:
        headers["Preference-Applied"] = f"wait={seconds}"
    if known == tag:
        return Response(None, 304, headers)
    if not State(task["state"]).final:
        headers["Retry-After"] = "1"
    return Response(orjson.dumps(task_document(task)), 200, headers, "application/json")


@router.get("/v1/tasks", summary="List tasks")
async def show_all(
    request: Request,
    caller: Annotated[Caller, Depends(READ)],
    state: State | None = None,
    kind: Annotated[str, AfterValidator(known_kind), WithJsonSchema({"enum": list(KINDS)})] | None = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> TasksAnswer:
    """Return tasks, newest first; `next` is the cursor of the following page."""
    created_at_and_id = None if cursor is None else _PAGES.read(cursor)
    kinds = READ.kinds(caller)
    if kind is not None:
        READ.check(caller, kind)
        kinds = [kind]
    tasks = await gateway(request).ledger.page(
        owner=owner_of(caller),
        state=state,
        kinds=None if len(kinds) == len(KINDS) else kinds,
        before=created_at_and_id,
        limit=limit,
    )
    return {
        "tasks": [task_document(task) for task in tasks],
        "next": _PAGES.write(tasks[-1]["created_at"], tasks[-1]["id"]) if len(tasks) == limit else None,
    }


@router.post(
    "/v1/tasks/{task_id}/cancel",
    status_code=202,
    summary="Cancel a task",
    responses={code: {"model": TaskStateAnswer} for code in (200, 202)},
)
async def cancel(request: Request, task_id: str, caller: Annotated[Caller, Depends(ACT)]) -> Response:
    """Cancel a task that has not begun: 200 when it is cancelled, 202 when the worker was asked and will report."""
    parts = gateway(request)
    await _find(request, task_id, caller, ACT)
    state: State = await parts.commits.write(parts.ledger.cancel, task_id)
    parts.waiters.wake([task_id])
    if state.final and state is not State.CANCELLED:
        raise Problem(409, "Conflict", f"The task is {state.value} already; there is nothing left to cancel.")
    body = orjson.dumps({"id": task_id, "state": state})
    return Response(body, 200 if state.final else 202, {"Location": f"/v1/tasks/{task_id}"}, "application/json")


@router.post(
    "/v1/tasks/{task_id}/retry",
    status_code=202,
    summary="Begin another round",
    responses={202: {"model": TaskStateAnswer}},
)
async def retry(request: Request, task_id: str, caller: Annotated[Caller, Depends(ACT)]) -> Response:
    """Begin another round of a failed, suppressed or cancelled task, under the same id (a mail: the same Message-ID).

    409 while its address is on the suppression list.
    """
    parts = gateway(request)
    task = await _find(request, task_id, caller, ACT)
    if state_after(task, TaskEvent.RETRY) is None:
        raise Problem(409, "Conflict", f"The task is {task['state']}; only what ended unsent can be retried.")
    if task["broadcast_id"] is not None:
        phase: Phase = await parts.commits.write(parts.newsletter.maker.retry_tasks, task_id)
        if phase not in (Phase.RUNNING, Phase.FINISHED):
            raise Problem(409, "Conflict", f"The broadcast of this task is {phase.value}, so nothing of it is sent.")
        task = await _find(request, task_id, caller, ACT)
        body = orjson.dumps({"id": task_id, "state": task["state"]})
        return Response(body, 202, {"Location": f"/v1/tasks/{task_id}"}, "application/json")
    address = KINDS[task["kind"]].address(task["recipient"])
    if address in (suppressed := await parts.newsletter.suppressions.reasons([address])):
        raise Problem(409, "Conflict", f"The address is suppressed ({suppressed[address]}): release it first.")
    if task["document"] is None:
        raise Problem(409, "Conflict", "An event set this task off; publish the event again under a new id instead.")
    state: State = await parts.commits.write(parts.ledger.retry, task_id)
    return Response(
        orjson.dumps({"id": task_id, "state": state}), 202, {"Location": f"/v1/tasks/{task_id}"}, "application/json"
    )


async def _find(request: Request, task_id: str, caller: Caller, scope: TaskScope) -> TaskRow:
    task = await gateway(request).ledger.get(task_id, owner_of(caller))
    if task is None or task["kind"] not in KINDS:
        raise Problem(404, "Not Found", "There is no such task, or it is another key's, or its retention is over.")
    scope.check(caller, task["kind"])
    return task
