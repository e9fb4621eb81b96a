"""HEAD for everything that GET is answered for (RFC 9110, 9.3.2)."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """Answers HEAD with the head that GET would have, and ends the work for the body as soon as that is known.

    It must be the innermost middleware: those around it count and name the request as it came.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or one WebSocket."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        # A copy, because the server leaves out the body by the method of its own scope.
        inner = {**scope, "method": "GET"}

        def tell_outer() -> None:
            # What stands around this counts the request, and names it by its route.
            scope.update({name: value for name, value in inner.items() if name not in scope})

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                tell_outer()
                await send(message)
                return
            await send({"type": "http.response.body", "body": b""})
            raise _HeadSent

        try:
            await self.app(inner, receive, send_head)
        except _HeadSent:
            return
        finally:
            tell_outer()


class _HeadSent(Exception):
    """The answer is complete: what would make the body, perhaps a stream without end, stops here."""
