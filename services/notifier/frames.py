"""The bytes on the wire: HTTP chunks of Server-Sent Events, WebSocket frames. Pure functions.

An event has the same JSON everywhere:

    {"channel": …, "id": …, "type": …, "time": …, "event_id": …, "source": …, "subject": …, "data": …}

Beside events there are the notifier's own messages, which have no channel: `{"type": …, "id": …, "data": {…}}`.

    ready     you are live; `id` is where the log ends
    gap       the events behind `data.after` are missing: fetch the present state anew; live from `id` on
    expired   the token is over: get a new one, resume from the last id
    evicted   you read too slowly: resume from the last id
    busy      no place for you, or not ready yet, for the moment: connect again
    closing   this process stops: connect again, resume from the last id
    ping      (WebSocket) nothing happened on your channels up to `id`
    problem   (WebSocket) why the socket is being closed, as in RFC 9457

Whatever has an `id` is a place to resume from: keep the last one.
"""

import struct
from functools import cached_property
from typing import Any

import orjson

from services.notifier.events import Event

LAST_CHUNK = b"0\r\n\r\n"


class Run:
    """Consecutive events of one channel; each kind of bytes is made once, when the first subscriber needs it."""

    def __init__(self, shown: list[tuple[Event, str]]) -> None:
        self.shown = shown

    @cached_property
    def sse(self) -> bytes:
        """Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""
        return b"".join(
            b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.type.encode(), event.json(channel))
            for event, channel in self.shown
        )

    @cached_property
    def sse_chunk(self) -> bytes:
        """The same as a chunk of the response."""
        return http_chunk(self.sse)

    @cached_property
    def websocket(self) -> bytes:
        """One text frame each."""
        return b"".join(websocket_text(event.json(channel)) for event, channel in self.shown)


def message(type: str, id: str | None = None, **data: Any) -> bytes:
    """Return one of the notifier's own messages as JSON."""
    fields: dict[str, Any] = {"type": type}
    if id is not None:
        fields["id"] = id
    return orjson.dumps(fields | {"data": data})


def sse_message(type: str, id: str | None = None, **data: Any) -> bytes:
    """Return the same as a Server-Sent Event."""
    lines = b"id: %b\n" % id.encode() if id is not None else b""
    return lines + b"event: %b\ndata: %b\n\n" % (type.encode(), message(type, id, **data))


def sse_ping(id: str) -> bytes:
    """Return a comment that shows nothing, but moves on the id that a browser will resume from.

    An `id` without `data` is remembered and not dispatched; without it, somebody whose channels are quiet would
    resume from an event that left the window long ago.
    """
    return b": ping\nid: %b\n\n" % id.encode()


def http_chunk(data: bytes) -> bytes:
    """Return `data` as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def websocket_text(payload: bytes) -> bytes:
    """Return `payload` as one whole text frame of a server, which does not mask (RFC 6455, 5.2)."""
    return _websocket_frame(0x1, payload)


def websocket_close(code: int, reason: str) -> bytes:
    """Return a close frame; the reason is cut at 123 bytes (RFC 6455, 5.5)."""
    return _websocket_frame(0x8, struct.pack("!H", code) + reason.encode()[:123].decode(errors="ignore").encode())


def _websocket_frame(opcode: int, payload: bytes) -> bytes:
    first, size = 0x80 | opcode, len(payload)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 2**16:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload
