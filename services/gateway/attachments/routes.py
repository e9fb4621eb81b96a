"""Attachments: clients upload them, mails refer to them, the mailer fetches them."""

from collections import Counter
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.mail import MAX_ATTACHMENTS_BYTES, AttachmentRequest, Filename
from bellhop.contracts.media_types import ContentType
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.problems import Problem, invalid
from bellhop.web.sentences import sentence
from services.gateway.acceptance.idempotent_route import IdempotentRoute
from services.gateway.attachments.schemas import AttachmentAnswer
from services.gateway.attachments.store import OverQuota
from services.gateway.parts import MailerOnly, gateway
from services.gateway.tasks.routes import time_of

router = APIRouter(route_class=IdempotentRoute, tags=["mail"])

UPLOAD = "/v1/attachments"
MAILER_AUDIENCE = "attachments"
_CONTENT_TYPE: TypeAdapter[str] = TypeAdapter(ContentType)


@router.post(
    UPLOAD,
    status_code=201,
    summary="Upload an attachment",
    openapi_extra={"requestBody": {"required": True, "content": {"*/*": {"schema": {"format": "binary"}}}}},
)
async def upload(
    request: Request,
    filename: Annotated[Filename, Query()],
    caller: Annotated[Caller, Depends(require(Scope.MAIL_SEND))],
) -> AttachmentAnswer:
    """Take a file as it is, with its Content-Type; mails refer to it by the `id` of the answer.

    The same file under the same name again is the same attachment.
    """
    try:
        content_type = _CONTENT_TYPE.validate_python(request.headers.get("content-type", ""))
    except ValidationError as error:
        raise Problem(
            415,
            "Unsupported Media Type",
            f"Say what the file is, as in Content-Type: application/pdf. It {_error_text(error)}.",
        ) from None
    content = await request.body()
    if not content:
        raise Problem(400, "Bad Request", "The body is empty. Send the file as it is.")
    try:
        kept = await gateway(request).attachments.add(caller.name, filename, content_type, content)
    except OverQuota as error:
        raise Problem(
            507,
            "Insufficient Storage",
            f"{error}. Wait until older ones expire, send small files within the mail, or ask the operator for more.",
        ) from None
    return {
        "id": kept.id,
        "filename": kept.filename,
        "content_type": kept.content_type,
        "size": kept.size,
        "sha256": kept.sha256,
        "expires_at": time_of(kept.expires_at),
    }


@router.get(
    UPLOAD + "/{attachment_id}/content", include_in_schema=False, dependencies=[Depends(MailerOnly(MAILER_AUDIENCE))]
)
async def content(request: Request, attachment_id: str) -> Response:
    """Return a file to the mailer."""
    found = await gateway(request).attachments.get(attachment_id)
    if found is None:
        raise Problem(404, "Not Found", "There is no such attachment, or its time is over.")
    headers = {
        # Not as the media type of the response: Starlette would add a charset, which is wrong for some texts.
        "Content-Type": found.content_type,
        "X-Filename": quote(found.filename, safe=""),
        "X-Content-SHA256": found.sha256,
        "Cache-Control": "no-store",
    }
    return Response(found.content, 200, headers)


async def check(request: Request, wanted: list[AttachmentRequest], caller: Caller, at: int) -> None:
    """Raise Problem 422 unless `caller` uploaded what a mail at the time `at` (milliseconds) refers to."""
    counts = Counter(one.id for one in wanted if one.id is not None)
    sizes = await gateway(request).attachments.refer(caller.name, list(counts), at)
    wrong = [
        {
            "loc": ("body", "attachments", number, "id"),
            "msg": "There is no such attachment, or it is another key's, or its time is over. Upload it first.",
        }
        for number, one in enumerate(wanted)
        if one.id is not None and one.id not in sizes
    ]
    inline = sum(len(one.content_base64 or "") * 3 // 4 for one in wanted)
    if not wrong and inline + sum(sizes[each] * count for each, count in counts.items()) > MAX_ATTACHMENTS_BYTES:
        wrong = [{"loc": ("body", "attachments"), "msg": f"may have {MAX_ATTACHMENTS_BYTES} bytes together at most"}]
    if wrong:
        raise invalid(wrong)


def _error_text(error: ValidationError) -> str:
    return sentence(error.errors()[0])
