"""Routes whose POSTs accept an `Idempotency-Key`: executed once, with the same answer each time."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from bellhop.observe.logs import get_logger
from bellhop.sql.database import DatabaseUnavailable, first_in_transaction
from bellhop.web.auth import Require
from bellhop.web.problems import Problem
from bellhop.web.strict_json import StrictRequest, StrictRoute
from services.gateway.acceptance import store as store
from services.gateway.acceptance.keys import KEY_HEADER, SEED, Seed, conflict, key_of
from services.gateway.acceptance.store import IN_PROGRESS, TOOK_EFFECT, Finished, IdempotencyKey, KeyDecision, StoredKey
from services.gateway.parts import gateway

WAIT_SECONDS = 5.0
"""How long a request waits for another one in progress under its key, before it gets 409."""
POLL_SECONDS = 0.1

log = get_logger(__name__)


async def replay(request: Request, key: IdempotencyKey | None, place: str | None = None) -> Response | None:
    """Return the stored answer of a route that `commits_its_key`; None where there is none.

    Such a route asks before it checks what may have changed since the first request.
    `place`: where the answer's `id` is found, like `/v1/tasks/`; None where the answer has no `Location`.
    """
    if key is None:
        return None
    async with gateway(request).database.read() as connection:
        stored = (await store.read(connection, [(key.owner, key.key)])).get((key.owner, key.key))
    if stored is None or stored.status in (IN_PROGRESS, TOOK_EFFECT):
        return None
    if stored.fingerprint != key.fingerprint:
        raise conflict()
    if place is not None:
        stored = dataclasses.replace(stored, location=place + orjson.loads(stored.answer)["id"])
    return _stored_answer(stored)


def _stored_answer(stored: StoredKey) -> Response:
    headers = {"Idempotency-Replay": "true"}
    if stored.location is not None:
        headers["Location"] = stored.location
    return Response(stored.answer, stored.status, headers, "application/json" if stored.answer else None)


def _in_progress() -> Problem:
    return Problem(
        409,
        "Request in progress",
        "A request under this Idempotency-Key is still in progress. Send it again later to get its answer.",
        headers={"Retry-After": "1"},
    )


def _answer_lost() -> Problem:
    return Problem(
        409,
        "Answer lost",
        "A request under this Idempotency-Key took effect, but its answer was lost, and it is not executed twice."
        " Check the result of the request. To repeat it, use a new key.",
    )


Handler = Callable[[Request], Awaitable[Response]]


class IdempotentRoute(StrictRoute):
    """A `StrictRoute` whose POSTs accept an `Idempotency-Key`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._guard is not None:
            documented = self.openapi_extra or {}
            self.openapi_extra = documented | {"parameters": [*documented.get("parameters", ()), KEY_HEADER]}

    @property
    def _guard(self) -> Require | None:
        """The guard that identifies the owner of the key; None where the route takes none."""
        if "POST" not in (self.methods or ()):
            return None
        return next((each.call for each in self.dependant.dependencies if isinstance(each.call, Require)), None)

    def get_route_handler(self) -> Any:
        """Return the handler of a request."""
        handler = super().get_route_handler()
        guard = self._guard
        if guard is None or getattr(self.endpoint, "commits_its_key", False):
            return handler
        stores_answer = not getattr(self.endpoint, "answers_with_a_secret", False)

        async def idempotent(request: Request) -> Response:
            if "idempotency-key" not in request.headers:
                return await handler(request)
            request = StrictRequest(request.scope, request.receive)
            key = await key_of(request, await guard(request))
            assert key is not None
            return await _once(request, key, handler, stores_answer)

        return idempotent


async def _once(request: Request, key: IdempotencyKey, handler: Handler, stores_answer: bool) -> Response:
    stored, decision = await _reserve(request, key)
    request.scope[SEED] = Seed(stored.id, stored.created_at, replay=decision is not KeyDecision.EXECUTE)
    if decision is not KeyDecision.EXECUTE:
        if stores_answer:
            if decision is KeyDecision.ANSWER_LOST:
                raise _answer_lost()
            return _stored_answer(stored)
        answer = await handler(await _again(request))
        answer.headers["Idempotency-Replay"] = "true"
        return answer
    status: int | None = IN_PROGRESS
    body, location = b"", None
    try:
        with _noting_effects(key, stored):
            answer = await handler(await _again(request))
        if answer.status_code < 300:
            status, location = answer.status_code, answer.headers.get("location")
            body = bytes(answer.body) if stores_answer else b""
        elif answer.status_code < 500:
            status = None
    except (HTTPException, RequestValidationError) as error:
        if getattr(error, "status_code", 422) < 500:
            status = None
        raise
    finally:
        try:
            await gateway(request).commits.write(store.finish, Finished(key, stored, status, body, location))
        except DatabaseUnavailable as error:
            # The effect is committed and recorded. The key gets an answer again when its lease expires.
            log.warning("an answer was not stored under its idempotency key", path=request.url.path, reason=str(error))
    return answer


@contextmanager
def _noting_effects(key: IdempotencyKey, stored: StoredKey) -> Iterator[None]:
    """Make every transaction of the block record that the request under `key` had an effect."""
    token = first_in_transaction.set(partial(store.note_effect, key=key, stored=stored))
    try:
        yield
    finally:
        first_in_transaction.reset(token)


async def _reserve(request: Request, key: IdempotencyKey) -> tuple[StoredKey, KeyDecision]:
    """Return the row of `key`, and whether this request is executed.

    Raises:
        Problem: 422 for another request under the key; 409 where one is in progress for longer than `WAIT_SECONDS`.
    """
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while True:
        reserved = await gateway(request).commits.write(store.reserve, key)
        if reserved.stored.fingerprint != key.fingerprint:
            raise conflict()
        if reserved.decision is not KeyDecision.WAIT:
            return reserved.stored, reserved.decision
        if asyncio.get_running_loop().time() >= deadline:
            raise _in_progress()
        await asyncio.sleep(POLL_SECONDS)


async def _again(request: Request) -> Request:
    """Return the request with an unread body."""
    body: bytes | None = await request.body()

    async def receive() -> Any:
        nonlocal body
        if body is None:
            return await request.receive()
        message = {"type": "http.request", "body": body, "more_body": False}
        body = None
        return message

    return Request(request.scope, receive)
