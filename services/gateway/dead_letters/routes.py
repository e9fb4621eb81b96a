"""Dead letters: list, show, replay (one, a group, or with another body), and delete."""

from typing import Annotated, cast

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.cursors import Cursor, CursorText
from bellhop.web.problems import Problem
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.dead_letters.rows import DeadLetter
from services.gateway.dead_letters.schemas import (
    DeadLetterAnswer,
    DeadLettersAnswer,
    EditRequest,
    GroupAnswer,
    GroupReplayRequest,
    ReplayAnswer,
    WholeDeadLetterAnswer,
)
from services.gateway.dead_letters.store import Superseded
from services.gateway.parts import gateway
from services.gateway.tasks.routes import time_of

router = APIRouter(route_class=IdempotentRoute, tags=["dead letters"])

_PAGES = Cursor("dead-letters", str)

Reader = Annotated[Caller, Depends(require(Scope.DEAD_LETTERS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.DEAD_LETTERS_WRITE))]

SHOWN_BYTES = 256 * 1024


def _document(dead_letter: DeadLetter) -> DeadLetterAnswer:
    return DeadLetterAnswer(
        id=dead_letter.id,
        queue=dead_letter.queue,
        event_id=dead_letter.event_id,
        type=dead_letter.type,
        reason=dead_letter.reason,
        error=dead_letter.error,
        attempts=dead_letter.attempts,
        died_at=time_of(dead_letter.died_at),
        replayed_at=time_of(dead_letter.replayed_at),
        deleted_at=time_of(dead_letter.deleted_at),
        erased_at=time_of(dead_letter.erased_at),
    )


@router.get("/v1/dead-letters", summary="List dead letters")
async def show_all(
    request: Request,
    caller: Reader,
    queue: Annotated[str | None, Query(max_length=255)] = None,
    waiting: bool = True,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> DeadLettersAnswer:
    """Return the newest dead letters, and how many of them wait in each group (queue, type, reason).

    With `queue=unrouted`: the events of types that no queue is bound to, which are kept for a while.
    """
    before = None if cursor is None else _PAGES.read(cursor)[0]
    store = gateway(request).dead_letters
    found = await store.page(queue=queue, before=before, waiting=waiting, limit=limit)
    groups = [
        GroupAnswer(
            queue=group.queue, type=group.type, reason=group.reason, count=group.count, oldest=time_of(group.oldest)
        )
        for group in await store.groups(queue)
    ]
    return {
        "dead_letters": [_document(dead_letter) for dead_letter in found],
        "groups": groups,
        "next": _PAGES.write(found[-1].id) if len(found) == limit else None,
    }


@router.get("/v1/dead-letters/{letter_id}", summary="One dead letter, whole")
async def show(request: Request, letter_id: str, caller: Reader) -> WholeDeadLetterAnswer:
    """Return a dead letter with its envelope and its body, as JSON where it is JSON.

    Of a body larger than 256 KiB the beginning is shown as text, with `body_bytes` beside it.
    """
    dead_letter = await gateway(request).dead_letters.get(letter_id)
    if dead_letter is None:
        raise _none()
    content = {"envelope": orjson.loads(dead_letter.envelope), "body": _shown(dead_letter.body)}
    answer = cast(WholeDeadLetterAnswer, {**_document(dead_letter), **content})
    if len(dead_letter.body) > SHOWN_BYTES:
        answer["body_bytes"] = len(dead_letter.body)
    return answer


def _shown(body: bytes) -> JsonValue:
    # Foreign messages have up to 16 MiB: as JSON they take seconds, during which no other request is served.
    if len(body) > SHOWN_BYTES:
        return body[:SHOWN_BYTES].decode(errors="replace")
    try:
        found: JsonValue = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")
    return found


@router.post("/v1/dead-letters/replay", status_code=202, summary="Replay a group")
async def replay_group(request: Request, body: GroupReplayRequest, caller: Writer) -> ReplayAnswer:
    """Send the dead letters of one queue back to it, oldest first, at most `rate` a second.

    Those of the queue `unrouted` are events: each is published to the present destinations of its type.
    """
    count = await gateway(request).dead_letters.replay(
        ids=None, queue=body.queue, actor=caller.name, rate=body.rate, limit=body.limit, body=None, type_=body.type
    )
    return {"replayed": count}


@router.post("/v1/dead-letters/{letter_id}/replay", status_code=202, summary="Replay one")
async def replay(request: Request, letter_id: str, caller: Writer, edit: EditRequest | None = None) -> ReplayAnswer:
    """Send one dead letter back to its queue, as it was or with another body.

    Another body takes the scope `admin`: it can contain the message of any service and any client.
    """
    if edit is not None:
        caller.check(Scope.ADMIN)
    body = None if edit is None else orjson.dumps(edit.body)
    try:
        count = await gateway(request).dead_letters.replay(
            ids=[letter_id], queue=None, actor=caller.name, rate=1000, limit=1, body=body
        )
    except Superseded as error:
        raise Problem(409, "Conflict", f"{error} Delete the dead letter.") from None
    if not count:
        raise _none()
    return {"replayed": count}


@router.delete("/v1/dead-letters/{letter_id}", status_code=204, summary="Give one up")
async def delete(request: Request, letter_id: str, caller: Writer) -> Response:
    """Erase the body; who did it, and when, stays on record."""
    if not await gateway(request).dead_letters.delete(letter_id, caller.name):
        raise _none()
    return Response(status_code=204)


def _none() -> Problem:
    return Problem(404, "Not Found", "There is no such dead letter waiting; it may have been replayed or deleted.")
