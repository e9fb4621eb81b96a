"""Mail templates: answered by the mailer, under the gateway's address and keys."""

from collections.abc import Collection
from time import monotonic
from typing import Annotated
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.templates import PreviewAnswer, PreviewRequest, TemplatesAnswer
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.peer import PeerUnavailable
from bellhop.web.problems import invalid
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.leaderboards.forwarding import forward
from services.gateway.parts import gateway

router = APIRouter(route_class=IdempotentRoute, tags=["mail"])

CHECK_SECONDS = 2.0
"""How long a request waits for the mailer to say which templates there are."""
KNOWN_SECONDS = 10.0
"""How long the answer is used, or that there was none."""

Sender = Annotated[Caller, Depends(require(Scope.MAIL_SEND))]


@router.get("/v1/templates", summary="List the mail templates", responses={200: {"model": TemplatesAnswer}})
async def show_all(request: Request, caller: Sender) -> Response:
    """Return the templates, with the event types that send them and the names of the data that they require."""
    return await _forward(request)


@router.post(
    "/v1/templates/{name}/preview",
    summary="See what a template makes of some data",
    responses={200: {"model": PreviewAnswer}},
)
async def preview(request: Request, name: str, body: PreviewRequest, caller: Sender) -> Response:
    """Fill a template with `{"data": {…}}` and return subject, text and HTML; nothing is sent."""
    return await _forward(request)


async def check(request: Request, name: str, data: Collection[str]) -> None:
    """Raise Problem 422 if the mailer says that there is no such template, or that it requires more than `data`.

    If the mailer does not answer, the request is accepted, and a mail whose template does not exist fails with that
    reason. The answer is cached for some seconds, so that a mail costs no request; for a name or data that do not fit
    the mailer is asked again, because templates change.
    """
    until, known = _known.get(request.app, (0.0, None))
    if monotonic() < until and (known is None or (name in known and known[name] <= set(data))):
        return
    known = await _required(request)
    _known[request.app] = monotonic() + KNOWN_SECONDS, known
    if known is not None and name not in known:
        there = ", ".join(known) or "none"
        raise invalid([{"loc": ("body", "template"), "msg": f"There is no template of that name. There are: {there}."}])
    if known is not None and (missing := sorted(known[name] - set(data))):
        raise invalid([{"loc": ("body", "data", each), "msg": f"The template {name} requires it."} for each in missing])


_known: WeakKeyDictionary[FastAPI, tuple[float, dict[str, set[str]] | None]] = WeakKeyDictionary()


async def _required(request: Request) -> dict[str, set[str]] | None:
    """Return the names of the mailer's templates, with what each requires; None if it does not answer."""
    mailer = gateway(request).mailer
    try:
        answer = await mailer.ask("GET", "/v1/templates", scope=Scope.MAIL_SEND, timeout_seconds=CHECK_SECONDS)
    except PeerUnavailable:
        return None
    # A mailer of an earlier version does not say what they require.
    return {template["name"]: set(template.get("required", ())) for template in answer["templates"]}


async def _forward(request: Request) -> Response:
    return await forward(request, gateway(request).mailer, Scope.MAIL_SEND)
