"""Broadcasts: one mail to all subscribers of a list, one task for each of them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from time import monotonic
from typing import Annotated, cast

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from bellhop.contracts.base import new_id
from bellhop.contracts.mail import mail_document
from bellhop.contracts.outcomes import State
from bellhop.sql.database import DatabaseUnavailable
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.cursors import Cursor, CursorText
from bellhop.web.problems import Problem, invalid
from services.gateway.acceptance.idempotent_route import IdempotentRoute, replay
from services.gateway.acceptance.keys import commits_its_key, conflict, key_of
from services.gateway.acceptance.service import answer_202, invalid_body
from services.gateway.attachments import routes as attachments
from services.gateway.broadcasts import dispatching
from services.gateway.broadcasts.merge_fields import MergedMail, MergeFieldError
from services.gateway.broadcasts.newsletter import Newsletter
from services.gateway.broadcasts.schemas import (
    BroadcastAnswer,
    BroadcastRequest,
    BroadcastsAnswer,
    BroadcastStateAnswer,
    ProgressAnswer,
)
from services.gateway.broadcasts.store import Action, BroadcastRow, NewBroadcast, Phase
from services.gateway.outbox.store import now_ms, to_ms
from services.gateway.parts import gateway
from services.gateway.tasks.counts import REST_FACTOR
from services.gateway.tasks.routes import (
    MAX_WAIT_SECONDS,
    POLL_SECONDS,
    UNCHANGED,
    WAIT_HEADERS,
    owner_of,
    task_document,
    time_of,
    wait_seconds,
)
from services.gateway.tasks.schemas import TasksAnswer
from services.gateway.templates import routes as templates

router = APIRouter(route_class=IdempotentRoute, tags=["broadcasts"])

_PAGES = Cursor("broadcasts", str)
_TASK_PAGES = Cursor("broadcast-tasks", str)

Reader = Annotated[Caller, Depends(require(Scope.BROADCASTS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.BROADCASTS_WRITE))]

HEARTBEAT_SECONDS = 15.0
"""Interval of comments in an idle stream, which keep proxies from closing it."""


@router.post(
    "/v1/broadcasts",
    status_code=202,
    summary="Send a mail to a list",
    responses={202: {"model": BroadcastStateAnswer}},
)
@commits_its_key
async def create(request: Request, body: BroadcastRequest, caller: Writer) -> Response:
    """Answer immediately with the id of the broadcast; `Location` is the URL of its progress."""
    key = await key_of(request, caller)
    # A repeated request gets the same answer, even if the list, template or attachments have changed.
    if (answer := await replay(request, key, "/v1/broadcasts/")) is not None:
        return answer
    parts = gateway(request).newsletter
    content = mail_document(body)
    list_ = content.pop("list")
    content.pop("allow_empty", None)
    await _check_audience(parts, list_, body.allow_empty)
    if body.template is None:
        try:
            MergedMail(content)
        except MergeFieldError as error:
            field = str(error).partition(",")[0]
            place = ("body", field) if field in content else ("body",)
            raise invalid([{"loc": place, "msg": f"{error}."}]) from None
    else:
        await templates.check(request, body.template, {*body.data, "subscriber"})
    try:
        dispatching.check(content, list_, caller.name, parts.links)
    except ValidationError as error:
        raise invalid_body(error) from None
    send_at = to_ms(body.send_at) if body.send_at is not None else None
    if body.attachments:
        await attachments.check(request, body.attachments, caller, max(send_at or 0, now_ms()))
    broadcast_id = new_id()
    item = NewBroadcast(
        id=broadcast_id,
        owner=caller.name,
        list=list_,
        content=content,
        send_at=send_at if send_at is not None and send_at > now_ms() else None,
        answer=orjson.dumps({"id": broadcast_id, "state": Phase.SCHEDULED}),
        key=key,
    )
    accepted = await parts.commits.write(parts.broadcasts.create, item)
    if accepted.conflict:
        raise conflict()
    parts.dispatcher.wake()
    return answer_202(accepted, f"/v1/broadcasts/{orjson.loads(accepted.answer)['id']}")


async def _check_audience(parts: Newsletter, list_: str, allow_empty: bool) -> None:
    """Raise Problem 422 if there is no such list, or it has no confirmed subscriber."""
    audience = await parts.broadcasts.list_audience(list_)
    if not audience.known and list_ not in parts.public_lists:
        msg = "There is no such list: it never had a subscriber. GET /v1/lists returns the existing lists."
    elif not audience.confirmed and not allow_empty:
        msg = (
            "This list has no confirmed subscriber. To send to those who confirm before the start,"
            ' add "allow_empty": true.'
        )
    else:
        return
    raise invalid([{"loc": ("body", "list"), "msg": msg}])


@router.get("/v1/broadcasts", summary="List broadcasts")
async def show_all(
    request: Request,
    caller: Reader,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BroadcastsAnswer:
    """Return broadcasts, newest first, without their counts; `next` is the cursor of the following page."""
    before = None if cursor is None else _PAGES.read(cursor)[0]
    rows = await gateway(request).newsletter.broadcasts.page(owner=owner_of(caller), before=before, limit=limit)
    return {
        "broadcasts": [_summary(row) for row in rows],
        "next": _PAGES.write(rows[-1].id) if len(rows) == limit else None,
    }


@router.get(
    "/v1/broadcasts/{broadcast_id}",
    summary="How far a broadcast is",
    responses={200: {"model": ProgressAnswer}, **UNCHANGED},
    openapi_extra=WAIT_HEADERS,
)
async def show(
    request: Request,
    broadcast_id: str,
    caller: Reader,
    wait: Annotated[int | None, Query(ge=0, le=MAX_WAIT_SECONDS)] = None,
) -> Response:
    """Return counts by state, rate and the time when it will be done.

    With `?wait=25` or `Prefer: wait=25` the answer comes when the broadcast is final, or changed against
    `If-None-Match`, or after so many seconds.
    """
    parts = gateway(request).newsletter
    seconds, preferred = wait_seconds(request, wait)
    known = request.headers.get("if-none-match")
    deadline = monotonic() + seconds
    while True:
        document = await _progress(parts, await _find(parts, broadcast_id, caller))
        tag = _etag(document)
        remaining = deadline - monotonic()
        changed = known is not None and known != tag
        if changed or document["state"].final or remaining <= 0 or await request.is_disconnected():
            break
        await _pause(request, min(remaining, POLL_SECONDS))
    headers = {"ETag": tag, "Cache-Control": "no-store"}
    if preferred:
        headers["Preference-Applied"] = f"wait={seconds}"
    if known == tag:
        return Response(None, 304, headers)
    return Response(orjson.dumps(document), 200, headers, "application/json")


@router.get(
    "/v1/broadcasts/{broadcast_id}/events",
    summary="Follow a broadcast",
    response_class=StreamingResponse,
    responses={200: {"description": "a stream", "content": {"text/event-stream": {}}}},
)
async def follow(request: Request, broadcast_id: str, caller: Reader) -> StreamingResponse:
    """Stream `progress` events (text/event-stream), one whenever something changed, and one `end`."""
    parts = gateway(request).newsletter
    await _find(parts, broadcast_id, caller)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(request, parts, broadcast_id, caller), 200, headers, "text/event-stream")


async def _events(request: Request, parts: Newsletter, broadcast_id: str, caller: Caller) -> AsyncIterator[bytes]:
    sent_tag, sent_at = "", monotonic()
    while not request.app.state.stopping.is_set():
        try:
            document = await _progress(parts, await _find(parts, broadcast_id, caller))
        except DatabaseUnavailable:
            await _pause(request, POLL_SECONDS)
            continue
        tag = _etag(document)
        if tag != sent_tag:
            sent_tag, sent_at = tag, monotonic()
            yield b"event: progress\ndata: " + orjson.dumps(document) + b"\n\n"
        elif monotonic() - sent_at > HEARTBEAT_SECONDS:
            sent_at = monotonic()
            yield b": still here\n\n"
        if document["state"].final:
            yield b"event: end\ndata: " + orjson.dumps({"state": document["state"]}) + b"\n\n"
            return
        await _pause(request, POLL_SECONDS)


async def _pause(request: Request, seconds: float) -> None:
    """Wait, but at most until this process stops."""
    try:
        async with asyncio.timeout(seconds):
            await request.app.state.stopping.wait()
    except TimeoutError:
        return


@router.get("/v1/broadcasts/{broadcast_id}/tasks", summary="The tasks of a broadcast")
async def show_tasks(
    request: Request,
    broadcast_id: str,
    caller: Reader,
    state: State | None = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> TasksAnswer:
    """Return the tasks in the order of recipients; recipients after the cursor of the broadcast have none yet."""
    after = None if cursor is None else _TASK_PAGES.read(cursor)[0]
    parts = gateway(request).newsletter
    await _find(parts, broadcast_id, caller)
    tasks = await parts.broadcasts.tasks(broadcast_id, state=state, after=after, limit=limit)
    return {
        "tasks": [task_document(task) for task in tasks],
        "next": _TASK_PAGES.write(tasks[-1]["recipient"]) if len(tasks) == limit else None,
    }


@router.post(
    "/v1/broadcasts/{broadcast_id}/{action}",
    status_code=202,
    summary="Pause, resume, cancel, retry-failed",
    responses={202: {"model": BroadcastStateAnswer}},
)
async def act(request: Request, broadcast_id: str, action: Action, caller: Writer) -> Response:
    """Take effect immediately: no task is made after a pause or a cancel was answered.

    After a pause the mailer still sends the tasks that it has, for some seconds; a cancel withdraws these too.
    """
    parts = gateway(request).newsletter
    await _find(parts, broadcast_id, caller)
    fits, phase = await parts.broadcasts.act(broadcast_id, action, caller.name)
    if not fits:
        raise Problem(409, "Conflict", f"The broadcast is {phase.value}; it cannot {_INFINITIVE[action]} now.")
    parts.progress.pop(broadcast_id, None)
    parts.dispatcher.wake()
    location = {"Location": f"/v1/broadcasts/{broadcast_id}"}
    return Response(orjson.dumps({"id": broadcast_id, "state": phase}), 202, location, "application/json")


_INFINITIVE = {
    Action.PAUSE: "pause",
    Action.RESUME: "resume",
    Action.CANCEL: "be cancelled",
    Action.RETRY_FAILED: "retry its failed tasks",
}


async def _find(parts: Newsletter, broadcast_id: str, caller: Caller) -> BroadcastRow:
    row = await parts.broadcasts.get(broadcast_id, owner_of(caller))
    if row is None:
        raise Problem(404, "Not Found", "There is no such broadcast, or it is another key's.")
    return row


def _summary(row: BroadcastRow) -> BroadcastAnswer:
    document = {
        "id": row.id,
        "list": row.list,
        "subject": row.subject,
        "template": row.template,
        "state": row.state,
        "recipients": row.total,
        "created_at": time_of(row.created_at),
        "send_at": time_of(row.send_at),
        "started_at": time_of(row.started_at),
        "finished_at": time_of(row.finished_at),
    }
    return cast(BroadcastAnswer, {name: value for name, value in document.items() if value is not None})


async def _progress(parts: Newsletter, row: BroadcastRow) -> ProgressAnswer:
    """Return the broadcast with its counts, which are at most a second old, or older where counting takes long."""
    cached = parts.progress.get(row.id)
    if cached is not None and cached[0] > monotonic() and cached[1]["state"] is row.state:
        return cached[1]
    began = monotonic()
    counts = await parts.broadcasts.counts(row.id)
    took = monotonic() - began
    changed = {"state": counts.phase, "recipients": counts.total, "counts": counts.by_state}
    document = cast(ProgressAnswer, {**_summary(row), **changed})
    if counts.phase is Phase.RUNNING:
        rate = parts.dispatcher.rate(row.id)
        document["rate_per_second"] = round(rate, 1)
        if rate > 0:
            document["eta_seconds"] = round(counts.left / rate, 1)
            document["done_at"] = time_of(now_ms() + round(counts.left / rate * 1000))
    elif counts.phase is Phase.FINISHED and row.finished_at is not None and row.started_at is not None:
        seconds = max(row.finished_at - row.started_at, 1) / 1000
        document["rate_per_second"] = round(counts.total / seconds, 1)
    if len(parts.progress) > 1000:
        parts.progress.clear()
    # A count of many failed tasks takes long.
    keep = max(POLL_SECONDS * 0.9, REST_FACTOR * took)
    parts.progress[row.id] = (monotonic() + keep, document)
    return document


def _etag(document: ProgressAnswer) -> str:
    """Return the ETag of state and counts; changes of rate and estimated time do not count."""
    facts = orjson.dumps([document["state"], document["recipients"], document["counts"]])
    return f'"{hashlib.sha256(facts).hexdigest()[:16]}"'
