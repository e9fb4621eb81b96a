"""Mail templates: answered by the mailer, under the gateway's address and keys."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.strict_json import StrictRoute, check_content_type
from services.gateway.deps import gateway
from services.gateway.forwarding import forward

router = APIRouter(route_class=StrictRoute, tags=["mail"])

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


async def _forward(request: Request) -> Response:
    settings = gateway(request).settings
    return await forward(request, "mailer", settings.mailer_url, Scope.MAIL_SEND, settings.mailer_key)
