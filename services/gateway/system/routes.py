"""`GET /v1/system`: the state of the whole system."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from bellhop.web.auth import Caller, Scope, require
from bellhop.web.strict_json import StrictRoute
from services.gateway.outbox.store import now_ms
from services.gateway.parts import gateway
from services.gateway.system.broker import broker_view
from services.gateway.system.schemas import SystemAnswer
from services.gateway.tasks.routes import time_of

router = APIRouter(route_class=StrictRoute, tags=["system"])


@router.get("/v1/system", summary="Queues, services, rates, alarms")
async def show(request: Request, caller: Annotated[Caller, Depends(require(Scope.SYSTEM_READ))]) -> SystemAnswer:
    """Return the state of the system: tasks by state, the outbox, queues, replicas, alarms, dead letters."""
    parts = gateway(request)
    oldest = await parts.ledger.oldest_waiting()
    url = parts.settings.management_url
    return {
        "at": time_of(now_ms()),
        "tasks": await parts.ledger.counts(),
        "oldest_queued_task": {
            lane: {"since": time_of(since), "seconds": round((now_ms() - since) / 1000, 1)}
            for lane, since in oldest.items()
        },
        "outbox": {"waiting": parts.intake.outbox_publisher.waiting, "failure": parts.intake.publisher.failure},
        "dead_letters": await parts.dead_letters.waiting(),
        "unrouted": await parts.dead_letters.unrouted(),
        "reacts_to": parts.reactions.known,
        "broker": await broker_view(parts.http, None if url is None else url.get_secret_value()),
    }
