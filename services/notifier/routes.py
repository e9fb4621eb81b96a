"""Routes of FastAPI: the long poll, and a page that shows live events."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.responses import FileResponse, RedirectResponse, Response

from bellhop.web.auth import Guard
from bellhop.web.deadline import extend
from bellhop.web.documents import header
from bellhop.web.strict_json import AnyQueryRoute, StrictRoute
from bellhop.web.tokens import Claims
from services.notifier.admission import Asked, counting_refusals, grant, read_request, read_token
from services.notifier.schemas import PollAnswer
from services.notifier.transports import ReaderContext, poll

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    # Only the page's own files: the token that a user types in must not be sent to another site.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

STREAM_DOCUMENT = {
    "get": {
        "tags": ["live"],
        "summary": "Follow live events (Server-Sent Events)",
        "description": "Events of the token's channels as they happen. The token comes as `Authorization: Bearer …` or"
        " `?token=`. A temporary refusal is a stream too: `retry:` and `event: busy` with a problem document, because a"
        " browser's EventSource connects again only after a 200. The same is at `/v1/ws`"
        " as a WebSocket, whose first message may carry"
        ' `{"token": …, "last_event_id"?: …, "channels"?: […]}`.',
        "parameters": [
            {"name": name, "in": where, "schema": {"type": "string"}, "description": description}
            for name, where, description in (
                ("token", "query", "a stream token, where no header can be set"),
                ("channels", "query", "some of the token's channels, with commas between them; all without it"),
                ("Last-Event-ID", "header", "resume behind this id; browsers send it by themselves"),
                ("last_event_id", "query", "the same, where no header can be set"),
            )
        ],
        "responses": {"200": {"description": "a stream without end", "content": {"text/event-stream": {}}}},
    }
}
"""For /docs: the stream itself does not go through FastAPI."""

router = APIRouter(route_class=StrictRoute)
pages = APIRouter(route_class=AnyQueryRoute)


class StreamToken(Guard):
    """The guard of a long poll."""

    model = HTTPBearer(bearerFormat="JWT", description="A stream token: `Authorization: Bearer …`, or `?token=`")
    scheme_name = "stream-token"

    async def identify(self, request: Request) -> Claims:
        """Return the claims of the token.

        Raises:
            Problem: 401 or 429.
        """
        live: ReaderContext = request.app.state.live
        with counting_refusals(live.limiter, request.scope):
            claims = read_token(_asked(request).token, live.token_key)
        live.limiter.count_subject(request.scope, claims.subject)
        return claims


def _asked(request: Request, after: str | None = None) -> Asked:
    return read_request(request.scope["query_string"], request.headers, after)


@router.get(
    "/v1/poll",
    tags=["live"],
    summary="Wait for live events",
    responses={200: {"model": PollAnswer}},
    openapi_extra={"parameters": [header("Last-Event-ID", "the same as `after`, which wins")]},
)
async def get_poll(
    request: Request,
    claims: Annotated[Claims, Depends(StreamToken())],
    after: Annotated[str | None, Query(description="the `next` of the last answer; without it: from now on")] = None,
    wait: Annotated[float, Query(ge=0, le=55, description="seconds to wait for an event")] = 25,
    token: Annotated[str | None, Query(description="a stream token, where no header can be set")] = None,
    channels: Annotated[str | None, Query(description="some of the token's channels, with commas between them")] = None,
    last_event_id: Annotated[str | None, Query(description="the same as `after`, which wins")] = None,
) -> Response:
    """Return `{events, next, gap}`: what was shown on the channels of the token behind `after`.

    The stream token comes as `Authorization: Bearer …` or `?token=`; `?channels=a,b` narrows it. `gap` is null, or
    `{after, detail}`: the events behind `after` are missing, fetch the current state again.
    """
    live: ReaderContext = request.app.state.live
    del token, channels, last_event_id  # read from the request, as for a stream
    asked = _asked(request, after)
    granted = grant(claims, asked)
    extend(request.scope, wait)
    body = await poll(live, granted, asked.last_event_id, wait)
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


@pages.get("/", include_in_schema=False)
async def get_root() -> RedirectResponse:
    """Send a person who opens the address of this service to the page."""
    return RedirectResponse("/live")


@pages.get("/live", include_in_schema=False)
async def get_page() -> FileResponse:
    """Return the page that shows live events to a person."""
    return FileResponse(PAGE / "live.html", headers=PAGE_HEADERS)


@pages.get("/live/live.css", include_in_schema=False)
async def get_style() -> FileResponse:
    """Return its style."""
    return FileResponse(PAGE / "live.css", headers=PAGE_HEADERS)


@pages.get("/live/live.js", include_in_schema=False)
async def get_script() -> FileResponse:
    """Return its script."""
    return FileResponse(PAGE / "live.js", headers=PAGE_HEADERS)
