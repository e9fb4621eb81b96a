"""Mail templates: answered by the mailer, under the gateway's address and keys."""

from typing import Annotated

import httpx
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import invalid
from bellhop.web.strict_json import check_content_type
from services.gateway.deps import gateway
from services.gateway.forwarding import forward, token_for
from services.gateway.idempotent_route import AnyQueryIdempotentRoute

router = APIRouter(route_class=AnyQueryIdempotentRoute, tags=["mail"])

CHECK_SECONDS = 2.0

Sender = Annotated[Caller, Depends(require(Scope.MAIL_SEND))]


@router.get("/v1/templates", summary="List the mail templates")
async def show_all(request: Request, caller: Sender) -> Response:
    """Return the templates, with the event types that send them."""
    return await _forward(request)


@router.post("/v1/templates/{name}/preview", summary="See what a template makes of some data")
async def preview(request: Request, name: str, caller: Sender) -> Response:
    """Fill a template with `{"data": {…}}` and return subject, text and HTML; nothing is sent."""
    check_content_type(request)
    return await _forward(request)


async def check(request: Request, name: str) -> None:
    """Raise Problem 422 if the mailer says that there is no such template; a mailer that does not answer says nothing.

    Whatever goes to many asks before: each of their mails would fail.
    """
    parts = gateway(request)
    token = token_for(parts.settings.mailer_key, "mailer", Scope.MAIL_SEND)
    try:
        answer = await parts.http.get(
            f"{parts.settings.mailer_url}/v1/templates",
            headers={"Authorization": f"Bearer {token}"},
            timeout=CHECK_SECONDS,
        )
    except httpx.HTTPError:
        return
    if answer.status_code != 200:
        return
    known = [template["name"] for template in answer.json()["templates"]]
    if name not in known:
        there = ", ".join(known) or "none"
        raise invalid([{"loc": ("body", "template"), "msg": f"There is no template of that name. There are: {there}."}])


async def _forward(request: Request) -> Response:
    settings = gateway(request).settings
    return await forward(request, "mailer", settings.mailer_url, Scope.MAIL_SEND, settings.mailer_key)
