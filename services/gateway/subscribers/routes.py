"""Subscribers: subscribe, show, import and delete them; and suppressed addresses."""

import re
from contextlib import aclosing
from typing import Annotated
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Depends, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.addresses import canonical
from bellhop.contracts.tasks import Lane
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.cursors import Cursor, CursorText
from bellhop.web.problems import Problem, invalid
from bellhop.web.sentences import sentence
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.acceptance.service import invalid_body
from services.gateway.broadcasts.newsletter import Newsletter
from services.gateway.broadcasts.schemas import ListName
from services.gateway.outbox.store import now_ms, to_ms
from services.gateway.parts import MailerOnly, gateway
from services.gateway.subscribers.people_csv import BadCsv, Values, decoded, people
from services.gateway.subscribers.rows import SubscriptionRow
from services.gateway.subscribers.schemas import (
    BadLineAnswer,
    ImportAnswer,
    ListsAnswer,
    SubscriberAnswer,
    SubscriberRequest,
    SubscribersAnswer,
    SubscriptionAnswer,
    SuppressedAmongAnswer,
    SuppressedAmongRequest,
    SuppressedAnswer,
    SuppressionAnswer,
    SuppressionRequest,
    SuppressionsAnswer,
)
from services.gateway.subscribers.store import Person, SignUp, Status
from services.gateway.suppressions.store import Suppression, SuppressionRow
from services.gateway.tasks.routes import time_of

router = APIRouter(route_class=IdempotentRoute, tags=["subscribers"])

_PAGES = Cursor("subscribers", str)
_SUPPRESSION_PAGES = Cursor("suppressions", str)

Reader = Annotated[Caller, Depends(require(Scope.SUBSCRIBERS_READ))]
Writer = Annotated[Caller, Depends(require(Scope.SUBSCRIBERS_WRITE))]

MAILER_AUDIENCE = "suppressions"
IMPORT_PATH = "/v1/subscribers/import"
MAX_IMPORT = 8 * 1024 * 1024
IMPORT_CHUNK = 250
MAX_ERRORS = 100
_CSV = re.compile(r'text/(?:csv|tab-separated-values)(?:;\s*header=\w+)?(?:;\s*charset="?([\w.:-]+)"?)?', re.IGNORECASE)


@router.post(
    "/v1/subscribers",
    status_code=202,
    summary="Subscribe a person",
    responses={202: {"model": SubscriberAnswer}},
)
async def add(request: Request, body: SubscriberRequest, caller: Writer) -> Response:
    """Subscribe a person, or change name and attributes of one; a mail asks for confirmation unless `confirmed`."""
    parts = gateway(request).newsletter
    await parts.sign_up(
        SignUp(body.email, tuple(dict.fromkeys(body.lists)), body.name, body.attributes, confirmed=body.confirmed)
    )
    person = await parts.subscribers.get(body.email)
    if person is None:
        raise Problem(409, "Conflict", "Another request deleted this person just now. Try again.")
    location = {"Location": f"/v1/subscribers/{quote(body.email, safe='@')}"}
    return Response(orjson.dumps(_document(person)), 202, location, "application/json")


@router.post(
    IMPORT_PATH,
    summary="Import people from CSV",
    openapi_extra={"requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def import_csv(
    request: Request,
    caller: Writer,
    lists: Annotated[str, Query(max_length=1500, description="names with commas between them")],
    confirmed: bool = False,
) -> ImportAnswer:
    """Import up to 8 MiB of people, some hundred in a commit; the first line names the columns, one of them `email`.

    Errors are reported by line, and the other lines are imported. After a broken connection send the whole file again:
    existing subscribers are not counted or asked a second time. People who unsubscribed are `skipped`.
    """
    match = _CSV.fullmatch(request.headers.get("content-type", "").strip())
    if match is None:
        raise Problem(415, "Unsupported Media Type", "Send the file as it is, with Content-Type: text/csv.")
    importing = _Import(gateway(request).newsletter, lists.split(","), confirmed)
    try:
        # Read all of it first: writing it takes longer than a request body may take to arrive.
        text, note = decoded(await request.body(), match[1])
        async with aclosing(people(text)) as lines:
            async for line, values in lines:
                await importing.take(line, values)
    except BadCsv as error:
        detail = f"The file cannot be read: {error}. Nothing of it was taken."
        raise Problem(422, "Unprocessable Content", detail) from None
    await importing.commit()
    answer = importing.answer
    if note is not None:
        answer["note"] = note
    return answer


class _Import:
    """One running import."""

    def __init__(self, parts: Newsletter, lists: list[str], confirmed: bool) -> None:
        self._parts = parts
        self._lists = lists
        self._confirmed = confirmed
        self._waiting: list[SignUp] = []
        self._errors: list[BadLineAnswer] = []
        self._wrong = self._new = self._known = self._skipped = 0

    async def take(self, line: int, values: Values | str) -> None:
        """Add one record, or record its error."""
        if isinstance(values, str):
            self._refuse(line, values)
            return
        fields: Values = {"lists": [*self._lists], "confirmed": self._confirmed}
        for name in ("email", "name"):
            if name in values:
                fields[name] = values.pop(name)
        if isinstance(attributes := values.get("attributes"), dict):
            values = attributes | {name: value for name, value in values.items() if name != "attributes"}
        if values:
            fields["attributes"] = values
        try:
            person = SubscriberRequest.model_validate(fields)
        except ValidationError as error:
            problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
            if problem["loc"][:1] == ("lists",):
                raise invalid([{**problem, "loc": ("query", "lists")}]) from None
            self._refuse(line, f"{'.'.join(map(str, problem['loc']))}: {sentence(problem)}")
            return
        self._waiting.append(
            SignUp(
                person.email,
                tuple(dict.fromkeys(person.lists)),
                person.name,
                person.attributes,
                confirmed=person.confirmed,
                returning=False,
                lane=Lane.BULK,
            )
        )
        if len(self._waiting) >= IMPORT_CHUNK:
            await self.commit()

    async def commit(self) -> None:
        """Write the records since the last write."""
        waiting, self._waiting = self._waiting, []
        for result in await self._parts.sign_up(*waiting):
            self._skipped += result.skipped
            self._known += result.known and not result.skipped
            self._new += not result.known

    def _refuse(self, line: int, detail: str) -> None:
        self._wrong += 1
        if len(self._errors) < MAX_ERRORS:
            self._errors.append({"line": line, "detail": detail})

    @property
    def answer(self) -> ImportAnswer:
        """The results of the records."""
        return {
            "new": self._new,
            "known": self._known,
            "skipped": self._skipped,
            "wrong": self._wrong,
            "errors": self._errors,
        }


@router.get("/v1/subscribers", summary="List people")
async def show_all(
    request: Request,
    caller: Reader,
    list: Annotated[ListName | None, Query()] = None,
    state: Status | None = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> SubscribersAnswer:
    """Return people in the order of addresses; `next` is the cursor of the following page."""
    after = None if cursor is None else _PAGES.read(cursor)[0]
    people = await gateway(request).newsletter.subscribers.page(list_=list, state=state, after=after, limit=limit)
    return {
        "subscribers": [_document(person) for person in people],
        "next": _PAGES.write(people[-1].row.email) if len(people) == limit else None,
    }


@router.get("/v1/subscribers/{email:path}", summary="One person")
async def show(request: Request, email: str, caller: Reader) -> SubscriberAnswer:
    """Return a person with all subscriptions."""
    person = await gateway(request).newsletter.subscribers.get(canonical(email))
    if person is None:
        raise _no_subscriber()
    return _document(person)


@router.delete("/v1/subscribers/{email:path}", status_code=204, summary="Forget a person")
async def forget(request: Request, email: str, caller: Writer) -> Response:
    """Erase a person and all subscriptions. Tasks keep the address until their retention is over.

    The person can be imported again; to prevent that, suppress the address.
    """
    if not await gateway(request).newsletter.subscribers.delete(canonical(email)):
        raise _no_subscriber()
    return Response(status_code=204)


@router.get("/v1/lists", summary="All lists")
async def show_lists(request: Request, caller: Reader) -> ListsAnswer:
    """Return the names of all lists, each with its numbers of subscriptions by state."""
    return {"lists": await gateway(request).newsletter.subscribers.lists()}


@router.get("/v1/suppressions", summary="List suppressed addresses")
async def show_suppressions(
    request: Request,
    caller: Reader,
    source: Annotated[str | None, Query(max_length=64)] = None,
    cursor: CursorText = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> SuppressionsAnswer:
    """Return suppressed addresses in their order; `next` is the cursor of the following page."""
    after = None if cursor is None else _SUPPRESSION_PAGES.read(cursor)[0]
    rows = await gateway(request).newsletter.suppressions.page(after=after, source=source, limit=limit)
    return {
        "suppressions": [_suppression(row) for row in rows],
        "next": _SUPPRESSION_PAGES.write(rows[-1].address) if len(rows) == limit else None,
    }


@router.post("/v1/suppressions/among", include_in_schema=False, dependencies=[Depends(MailerOnly(MAILER_AUDIENCE))])
async def show_suppressed(request: Request) -> SuppressedAmongAnswer:
    """Return to the mailer which of these addresses get no mail, and why."""
    try:
        body = SuppressedAmongRequest.read(await request.body())
    except ValidationError as error:
        raise invalid_body(error) from None
    found = await gateway(request).newsletter.suppressions.reasons([canonical(email) for email in body.addresses])
    reasons = {email: found.get(canonical(email)) for email in body.addresses}
    return {"suppressed": {email: reason for email, reason in reasons.items() if reason is not None}}


@router.post("/v1/suppressions", status_code=201, summary="Send no mail to an address")
async def suppress(request: Request, body: SuppressionRequest, caller: Writer) -> SuppressedAnswer:
    """Suppress an address, until `expires_at` or without an end."""
    store = gateway(request).newsletter.suppressions
    expires_at = None if body.expires_at is None else to_ms(body.expires_at)
    if expires_at is not None and expires_at <= now_ms():
        msg = "must lie in the future; leave it out to suppress the address without an end"
        raise invalid([{"loc": ("body", "expires_at"), "msg": msg}])
    await store.add(Suppression(body.address, body.reason, caller.name[:64], expires_at))
    return {"address": body.address, "reason": body.reason, "source": caller.name[:64], "expires_at": body.expires_at}


@router.get("/v1/suppressions/{address:path}", summary="Why an address gets no mail")
async def show_suppression(request: Request, address: str, caller: Reader) -> SuppressionAnswer:
    """Return reason, source and times."""
    row = await gateway(request).newsletter.suppressions.get(canonical(address))
    if row is None:
        raise Problem(404, "Not Found", "This address is not suppressed.")
    return _suppression(row)


@router.delete("/v1/suppressions/{address:path}", status_code=204, summary="Remove a suppression")
async def release(request: Request, address: str, caller: Writer) -> Response:
    """Remove an address from the suppression list."""
    if not await gateway(request).newsletter.suppressions.remove(canonical(address)):
        raise Problem(404, "Not Found", "This address is not suppressed.")
    return Response(status_code=204)


def _no_subscriber() -> Problem:
    return Problem(404, "Not Found", "There is no such subscriber.")


def _document(person: Person) -> SubscriberAnswer:
    row = person.row
    return SubscriberAnswer(
        id=row.id,
        email=row.email,
        name=row.name,
        attributes=orjson.loads(row.attributes),
        state=person.state,
        lists={each.list: _subscription(each) for each in person.subscriptions},
        created_at=time_of(row.created_at),
        updated_at=time_of(row.updated_at),
    )


def _subscription(row: SubscriptionRow) -> SubscriptionAnswer:
    answer = SubscriptionAnswer(state=Status(row.state), created_at=time_of(row.created_at))
    if row.asked_at is not None:
        answer["asked_at"] = time_of(row.asked_at)
    if row.confirmed_at is not None:
        answer["confirmed_at"] = time_of(row.confirmed_at)
    if row.unsubscribed_at is not None:
        answer["unsubscribed_at"] = time_of(row.unsubscribed_at)
    return answer


def _suppression(row: SuppressionRow) -> SuppressionAnswer:
    return SuppressionAnswer(
        address=row.address,
        reason=row.reason,
        source=row.source,
        created_at=time_of(row.created_at),
        expires_at=time_of(row.expires_at),
    )
