"""The HTTP API of the mailer, for the gateway only: it forwards requests of its clients with a token."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from bellhop.contracts.templates import PreviewAnswer, PreviewRequest, TemplatesAnswer
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import Problem
from bellhop.web.strict_json import StrictRoute
from services.mailer.rendering import RenderingError, Templates

router = APIRouter(route_class=StrictRoute, tags=["templates"])
Sender = Annotated[Caller, Depends(require(Scope.MAIL_SEND))]


@router.get("/v1/templates", summary="List the mail templates")
async def show_all(request: Request, caller: Sender) -> TemplatesAnswer:
    """Return the templates, with the event types that send them and the names of the data that they require."""
    all_: Templates = request.app.state.mailer.templates
    found = [all_.get(name) for name in all_.names]
    return {"templates": [{"name": each.name, "on": list(each.on), "required": each.required} for each in found]}


@router.post("/v1/templates/{name}/preview", summary="See what a template makes of some data")
async def preview(request: Request, name: str, body: PreviewRequest, caller: Sender) -> PreviewAnswer:
    """Return the template rendered with the data; 422 names the line that fails."""
    templates: Templates = request.app.state.mailer.templates
    if name not in templates.names:
        known = ", ".join(templates.names) or "none"
        raise Problem(404, "Not Found", f"There is no template of that name. There are: {known}.")
    try:
        rendered = templates.get(name).render(body.data)
    except RenderingError as error:
        raise Problem(422, "Unprocessable Content", f"{error}.") from None
    return {"subject": rendered.subject, "text": rendered.text, "html": rendered.html}
