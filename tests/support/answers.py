"""Every answer that an application of ours gives in a test fits the type that its operation declares.

`install` puts the check around all routes of this process. An answer that does not fit becomes an error 500, whose log
says which field is wrong.
"""

from functools import cache
from typing import Any

from fastapi.routing import APIRoute
from pydantic import TypeAdapter
from starlette.types import Message, Receive, Scope, Send

validated: set[tuple[str, str]] = set()
"""Method and path of the operations that answered what they declare."""


def declared(route: APIRoute, status: int) -> Any:
    """Return the type that `route` declares for its answers of this status; None where there is none."""
    if (response := route.responses.get(status)) is not None and "model" in response:
        return response["model"]
    return route.response_model if status == (route.status_code or 200) else None


@cache
def _adapter(model: Any) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def check(model: Any, body: bytes) -> None:
    """Raise ValidationError unless `body` is JSON of the type `model`, with no other field and no type coerced."""
    _adapter(model).validate_json(body, strict=True, extra="forbid")


def install() -> None:
    """Check the answers of all routes."""
    handle = APIRoute.handle

    async def checked(self: APIRoute, scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start" and declared(self, message["status"]) is not None:
                held.append(message)
            elif held:
                held.append(message)
                if not message.get("more_body"):
                    check(declared(self, held[0]["status"]), b"".join(each.get("body", b"") for each in held[1:]))
                    validated.add((scope["method"], self.path))
                    for each in held:
                        await send(each)
            else:
                await send(message)

        await handle(self, scope, receive, hold)

    APIRoute.handle = checked  # type: ignore[method-assign]
