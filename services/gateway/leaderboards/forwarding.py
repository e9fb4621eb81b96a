"""Requests that another service answers, under the gateway's address and keys."""

import time
from email.utils import parsedate_to_datetime

import httpx
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web.auth import Scope
from bellhop.web.peer import Peer, PeerUnavailable
from bellhop.web.problems import Problem, unavailable
from bellhop.web.tokens import LEEWAY_SECONDS
from services.gateway.acceptance.service import traceparent

_ANSWER_HEADERS = ("content-type", "etag", "retry-after", "cache-control")


async def forward(request: Request, peer: Peer, scope: Scope) -> Response:
    """Return the answer of another service, which the request is handed to under a token with `scope`."""
    path = request.scope["raw_path"] + _query(request.scope["query_string"])
    headers = {}
    for name in ("content-type", "if-none-match"):
        if (value := request.headers.get(name)) is not None:
            headers[name] = value
    if (context := traceparent(request)) is not None:
        headers["traceparent"] = context
    try:
        answer = await peer.request(
            request.method, path.decode("ascii"), scope=scope, headers=headers, content=await request.body()
        )
    except PeerUnavailable:
        raise unavailable(f"The {peer.name} does not answer.") from None
    if answer.status_code in (401, 403):
        raise Problem(
            502, "Bad Gateway", f"The {peer.name} does not know this gateway: {_difference(answer, peer.name)}."
        )
    kept = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
    return Response(answer.content, answer.status_code, kept)


def _query(query: bytes) -> bytes:
    return b"?" + query if query else b""


def _difference(answer: httpx.Response, service: str) -> str:
    """Return why a service does not accept our token: a different time, by its `Date`, or a different key."""
    try:
        skew = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        skew = 0.0
    if abs(skew) > LEEWAY_SECONDS:
        return f"the clocks of this gateway and of the {service} differ by {abs(skew):,.0f} s"
    return "their token keys differ"
