"""Events: notifications, scores, and CloudEvents of any type. Published with a confirm, then answered 202."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, NotRequired, TypedDict

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bellhop.amqp.message import Message
from bellhop.contracts.answers import IdAnswer
from bellhop.contracts.base import Contract, now
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import GATEWAY, OUR_CHANNELS, is_our_source
from bellhop.contracts.notifications import MAX_SHOWN_BYTES, Notification
from bellhop.contracts.scores import ACCEPTED_AT, MAX_AHEAD, Score, ScoreBatch
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.documents import header
from bellhop.web.plain_route import PlainRoute
from bellhop.web.problems import Problem, invalid
from bellhop.web.strict_json import StrictRoute, check_content_type
from services.gateway.acceptance.idempotent_route import replay
from services.gateway.acceptance.keys import KEY_HEADER, commits_its_key, key_of
from services.gateway.acceptance.service import invalid_body, traceparent
from services.gateway.events import cloudevents
from services.gateway.events.schemas import EventAnswer, EventsAcceptedAnswer, ScoresAcceptedAnswer
from services.gateway.outbox.store import Entry
from services.gateway.parts import gateway
from services.gateway.tasks.routes import owner_of, task_document, time_of

published = APIRouter(route_class=PlainRoute, tags=["events"])
router = APIRouter(route_class=StrictRoute, tags=["events"])

MAX_SCORES = 1000

_SCORES = TypeAdapter(list[Score])
_SCORE = Score.model_json_schema()


def _event(request: Request, caller: Caller, type_: str, body: bytes) -> Entry:
    """Make an event of ours.

    Its id is always new. Under an idempotency key the first id is kept in the stored answer; after the key has
    expired, a new request under it is a new event, although inboxes remember the first one for much longer.
    """
    envelope = Envelope(type=type_, source=GATEWAY, traceparent=traceparent(request), owner=caller.name)
    return Entry("events", type_, Message(body, envelope))


@published.post(
    "/v1/notifications",
    status_code=202,
    summary="Show a notification to those who are looking",
    responses={202: {"model": IdAnswer}},
    openapi_extra={"parameters": [KEY_HEADER]},
)
@commits_its_key
async def notify(
    request: Request,
    notification: Notification,
    caller: Annotated[Caller, Depends(require(Scope.NOTIFICATIONS_SEND))],
) -> Response:
    """Push a notification to the browsers that follow any of its channels."""
    _check_channels(notification)
    body = notification.model_dump_json(exclude_none=True).encode()
    _check_size(body)
    entry = _event(request, caller, "notification.raised", body)
    answer = orjson.dumps({"id": entry.message.envelope.id})
    return await gateway(request).intake.publish(request, caller, [entry], answer)


@published.post(
    "/v1/scores",
    status_code=202,
    summary="Submit scores",
    responses={202: {"model": ScoresAcceptedAnswer}},
    openapi_extra={
        "parameters": [KEY_HEADER],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "oneOf": [
                            _SCORE,
                            {
                                "type": "array",
                                "items": _SCORE,
                                "minItems": 1,
                                "maxItems": MAX_SCORES,
                            },
                        ]
                    }
                }
            },
        },
    },
)
@commits_its_key
async def submit(request: Request, caller: Annotated[Caller, Depends(require(Scope.SCORES_WRITE))]) -> Response:
    """Take one score, or a list of up to 1,000, which are one message and are applied together."""
    check_content_type(request)
    document = await request.json()
    many = isinstance(document, list)
    scores = document if many else [document]
    if not 1 <= len(scores) <= MAX_SCORES:
        raise invalid([{"loc": ("body",), "msg": f"must be 1 to {MAX_SCORES} scores, not {len(scores)}"}])
    try:
        valid = _SCORES.validate_python(scores)
    except ValidationError as error:
        raise invalid_body(error, skip=0 if many else 1) from None
    at = now()
    _check_times(valid, at, ("body",) if not many else ("body", _EACH))
    if (answered := await _admit(request, caller, {score.board for score in valid})) is not None:
        return answered
    body = orjson.dumps({"scores": [_score(score, at) for score in valid]})
    entry = _accepted_at(_event(request, caller, "score.submitted", body), at)
    answer = orjson.dumps({"id": entry.message.envelope.id, "accepted": len(valid)})
    return await gateway(request).intake.publish(request, caller, [entry], answer)


async def _admit(request: Request, caller: Caller, boards: set[str]) -> Response | None:
    """Let `caller` write to `boards`; for a repeated request return the stored answer, even if they have changed."""
    try:
        await gateway(request).boards.admit(caller, boards)
    except Problem:
        answered = await replay(request, await key_of(request, caller))
        if answered is None:
            raise
        return answered
    return None


def _accepted_at(entry: Entry, at: datetime) -> Entry:
    """Record when scores were accepted: a client's own `time` is another time."""
    return replace(entry, message=replace(entry.message, headers={ACCEPTED_AT: at.isoformat()}))


_EACH = "*"
"""Placeholder for the index of a score in the path of an error."""


def _check_times(scores: list[Score], default: datetime, place: tuple[int | str, ...]) -> None:
    """Raise Problem 422 that names each score whose time is in the future; `default` is the time of the others."""
    latest = now() + MAX_AHEAD
    wrong = [
        {
            "loc": (*(index if step == _EACH else step for step in place), "at"),
            "msg": "must not lie more than 5 minutes in the future",
        }
        for index, score in enumerate(scores)
        if (score.at or default) > latest
    ]
    if wrong:
        raise invalid(wrong)


class _AcceptedScore(TypedDict):
    board: str
    player: str
    score: float
    at: datetime
    id: NotRequired[str]


def _score(score: Score, at: datetime) -> _AcceptedScore:
    values = _AcceptedScore(board=score.board, player=score.player, score=score.score, at=score.at or at)
    if score.id is not None:
        values["id"] = score.id
    return values


# Types that a service of ours reads: by any route the data must be what that service expects, and the
# key must have the scope that their own route takes.
KNOWN: dict[str, tuple[Callable[[Any], Contract], Scope]] = {
    "notification.raised": (Notification.model_validate, Scope.NOTIFICATIONS_SEND),
    "score.submitted": (ScoreBatch.model_validate, Scope.SCORES_WRITE),
}


@published.post(
    "/v1/events",
    status_code=202,
    summary="Publish CloudEvents",
    responses={202: {"model": IdAnswer | EventsAcceptedAnswer}},
    openapi_extra={
        "parameters": [KEY_HEADER, *(header(f"ce-{name}", text) for name, text in cloudevents.ATTRIBUTES.items())],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"description": "binary mode: the data; attributes are ce-… headers"}},
                "application/cloudevents+json": {"schema": {"type": "object", "description": "structured mode"}},
                "application/cloudevents-batch+json": {
                    "schema": {"type": "array", "items": {"type": "object"}, "description": "batch mode, up to 1,000"}
                },
            },
        },
    },
)
@commits_its_key
async def publish(request: Request, caller: Annotated[Caller, Depends(require(Scope.EVENTS_WRITE))]) -> Response:
    """Take CloudEvents 1.0 in binary, structured or batch mode; `source` and `id` of one owner together count once."""
    body = await request.body()
    if body:
        check_content_type(request)
    events = cloudevents.read(request.headers, body)
    entries: list[Entry] = []
    boards: set[str] = set()
    for number, (envelope, data) in enumerate(events):
        if is_our_source(envelope.source):
            raise _ours(number, "source")
        if (known := KNOWN.get(envelope.type)) is not None:
            check, scope = known
            caller.check(scope)
            data = _checked(check, data, envelope, number)
        envelope = replace(envelope, owner=caller.name, traceparent=envelope.traceparent or traceparent(request))
        packed = orjson.dumps(data)
        if envelope.type == "notification.raised":
            _check_size(packed, number, "data")
        entry = Entry("events", envelope.type, Message(packed, envelope))
        if envelope.type == "score.submitted":
            entry = _accepted_at(entry, now())
            boards.update(score["board"] for score in data["scores"])
        entries.append(entry)
    if boards and (answered := await _admit(request, caller, boards)) is not None:
        return answered
    ids = [entry.message.envelope.id for entry in entries]
    answer = orjson.dumps({"id": ids[0]} if len(ids) == 1 else {"accepted": len(ids), "ids": ids})
    return await gateway(request).intake.publish(request, caller, entries, answer)


def _checked(check: Callable[[Any], Contract], data: Any, envelope: Envelope, number: int) -> Any:
    try:
        model = check(data)
    except ValidationError as error:
        raise invalid_body(error, prefix=(number, "data")) from None
    if isinstance(model, Notification):
        _check_channels(model, number, "data")
    if isinstance(model, ScoreBatch):
        _check_times(model.scores, envelope.time, ("body", number, "data", "scores", _EACH))
        return {"scores": [_score(score, envelope.time) for score in model.scores]}
    return data


def _check_channels(notification: Notification, *place: int | str) -> None:
    """Raise Problem 422 if a client publishes to a reserved channel."""
    for number, channel in enumerate(notification.channels):
        if channel.startswith(OUR_CHANNELS):
            raise _ours(*place, "channels", number)


def _check_size(body: bytes, *place: int | str) -> None:
    """Raise Problem 422 if a notification is larger than what is shown."""
    if len(body) > MAX_SHOWN_BYTES:
        msg = (
            f"makes the notification {len(body)} bytes long, and {MAX_SHOWN_BYTES} can be shown."
            " Send the id of what is new and let the page fetch it."
        )
        raise invalid([{"loc": ("body", *place, "data"), "msg": msg}])


def _ours(*place: int | str) -> Problem:
    return invalid([{"loc": ("body", *place), "msg": "Bellhop uses this itself. Choose another."}])


Reader = Annotated[Caller, Depends(require(Scope.MAIL_READ))]


@router.get("/v1/events", summary="What an event set off")
async def reactions(
    request: Request,
    caller: Reader,
    id: Annotated[str, Query(min_length=1, max_length=255)],
    source: Annotated[str, Query(min_length=1, max_length=255)],
) -> EventAnswer:
    """Return type and time of an event, and the mails that templates sent because of it.

    Events that set off no mail are not stored. They are 404, like events that other keys published.
    """
    return await _set_off(request, caller, id, source)


@router.get("/v1/events/{event_id:path}", summary="What an event set off, by its id alone")
async def reactions_by_id(request: Request, event_id: str, caller: Reader) -> EventAnswer:
    """Return the mails that templates sent because of events of this id, from any source."""
    return await _set_off(request, caller, event_id, None)


async def _set_off(request: Request, caller: Caller, event_id: str, source: str | None) -> EventAnswer:
    tasks = await gateway(request).ledger.page(
        owner=owner_of(caller), event_id=event_id, event_source=source, limit=200
    )
    if not tasks:
        raise Problem(
            404, "Not Found", "Nothing is known of such an event: it set nothing off (yet), or it is another key's."
        )
    document = EventAnswer(id=event_id, tasks=[task_document(task) for task in tasks])
    origins = {(task["event_source"], task["event_type"], task["event_time"]) for task in tasks}
    if len(origins) == 1:
        ((source, type_, time),) = origins
        if source is not None:
            document["source"] = source
        if type_ is not None:
            document["type"] = type_
        if time is not None:
            document["time"] = time_of(time)
    return document
