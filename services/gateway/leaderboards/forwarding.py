"""Requests that another service answers, under the gateway's address and keys."""

import time
from email.utils import parsedate_to_datetime

import httpx
from starlette.requests import Request
from starlette.responses import Response

from bellhop.web import tokens
from bellhop.web.auth import Scope
from bellhop.web.problems import Problem, unavailable
from bellhop.web.tokens import LEEWAY_SECONDS
from services.gateway.acceptance.service import traceparent
from services.gateway.parts import gateway

TOKEN_SECONDS = 300
_ANSWER_HEADERS = ("content-type", "etag", "retry-after", "cache-control")


async def forward(request: Request, service: str, base_url: str, scope: Scope, key: str) -> Response:
    """Return the answer of `service`, which the request is handed to under a token signed with `key`."""
    parts = gateway(request)
    url = httpx.URL(base_url, raw_path=request.scope["raw_path"] + _query(request.scope["query_string"]))
    headers = {"Authorization": f"Bearer {token_for(key, service, scope)}"}
    for name in ("content-type", "if-none-match"):
        if (value := request.headers.get(name)) is not None:
            headers[name] = value
    if (context := traceparent(request)) is not None:
        headers["traceparent"] = context
    try:
        answer = await parts.http.request(request.method, url, headers=headers, content=await request.body())
    except httpx.HTTPError:
        raise unavailable(f"The {service} does not answer.") from None
    if answer.status_code in (401, 403):
        raise Problem(502, "Bad Gateway", f"The {service} does not know this gateway: {_difference(answer, service)}.")
    kept = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
    return Response(answer.content, answer.status_code, kept)


def _query(query: bytes) -> bytes:
    return b"?" + query if query else b""


_tokens: dict[tuple[str, str, Scope], tuple[float, str]] = {}


def token_for(key: str, service: str, scope: Scope) -> str:
    """Return a token that opens `service`; one is used for many requests."""
    made, token = _tokens.get((key, service, scope), (0.0, ""))
    if time.monotonic() - made > TOKEN_SECONDS / 2 or not token:
        token = tokens.mint(key, "gateway", TOKEN_SECONDS, service, scopes=[scope])
        _tokens[key, service, scope] = (time.monotonic(), token)
    return token


def _difference(answer: httpx.Response, service: str) -> str:
    """Say why a service that shares our key does not take a token of ours: its clock tells whether it is the time."""
    try:
        skew = time.time() - parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        skew = 0.0
    if abs(skew) > LEEWAY_SECONDS:
        return f"the clocks of this gateway and of the {service} differ by {abs(skew):,.0f} s"
    return "their token keys differ"
