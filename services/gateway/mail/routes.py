"""`POST /v1/mail`: one mail to one recipient becomes a task."""

from typing import Annotated

import orjson
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.base import new_id
from bellhop.contracts.kinds import MAIL
from bellhop.contracts.mail import MailRequest, mail_document
from bellhop.web.auth import Caller, Scope, require
from bellhop.web.plain_route import PlainRoute
from services.gateway.acceptance.idempotent_route import replay
from services.gateway.acceptance.keys import KEY_HEADER, commits_its_key, key_of
from services.gateway.acceptance.service import answer_202, traceparent
from services.gateway.attachments import routes as attachments
from services.gateway.outbox.store import now_ms, to_ms
from services.gateway.parts import gateway
from services.gateway.tasks.messages import new_task, request_entry
from services.gateway.tasks.schemas import TaskStateAnswer
from services.gateway.tasks.store import Acceptance
from services.gateway.templates import routes as templates

router = APIRouter(route_class=PlainRoute, tags=["mail"])


@router.post(
    "/v1/mail",
    status_code=202,
    summary="Send a mail",
    responses={202: {"model": TaskStateAnswer}},
    openapi_extra={"parameters": [KEY_HEADER]},
)
@commits_its_key
async def send(
    request: Request, mail: MailRequest, caller: Annotated[Caller, Depends(require(Scope.MAIL_SEND))]
) -> Response:
    """Answer immediately with the id of a task; `Location` is its URL."""
    intake = gateway(request).intake
    key = await key_of(request, caller)
    task_id = new_id()
    document = mail_document(mail) | {"task_id": task_id, "owner": caller.name}
    packed = orjson.dumps(document)
    created_at = now_ms()
    due_at = to_ms(mail.send_at) if mail.send_at is not None else 0
    if due_at <= created_at:
        due_at = 0
    # A repeated request gets the same answer, even if its attachments or template have changed.
    can_change = bool(mail.attachments) or mail.template is not None
    if can_change and (answer := await replay(request, key, "/v1/tasks/")) is not None:
        return answer
    if mail.template is not None:
        await templates.check(request, mail.template, mail.data)
    if mail.attachments:
        await attachments.check(request, mail.attachments, caller, due_at or created_at)
    acceptance = Acceptance(
        answer=orjson.dumps({"id": task_id, "state": "scheduled" if due_at else "queued"}),
        tasks=[new_task(MAIL, document, packed, created_at=created_at, send_at=due_at or None)],
        entries=[request_entry(MAIL, document, packed, due_at=due_at, traceparent=traceparent(request))],
        key=key,
        claimed=intake.outbox_publisher.has_capacity,
    )
    accepted = await intake.commit(acceptance)
    if not accepted.new:
        task_id = orjson.loads(accepted.answer)["id"]
    return answer_202(accepted, f"/v1/tasks/{task_id}")
