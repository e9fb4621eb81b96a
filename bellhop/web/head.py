"""HEAD for every route with GET (RFC 9110, 9.3.2)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Answers HEAD with the head of GET's answer, and ends the handler when that is sent.

    It must be the innermost middleware: the others count and name the request as HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        # A copy, because the server omits the body if the method in its own scope is HEAD.
        inner = {**scope, "method": "GET"}

        def update_outer_scope() -> None:
            # The outer middleware counts the request, and names it by its route.
            scope.update({name: value for name, value in inner.items() if name not in scope})

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                update_outer_scope()
                await send(message)
                return
            await send({"type": "http.response.body", "body": b""})
            raise _HeadSent

        try:
            await self.app(inner, receive, send_head)
        except _HeadSent:
            return
        finally:
            update_outer_scope()


class _HeadSent(Exception):
    """The answer is complete. This ends the handler, which may be a stream without end."""
