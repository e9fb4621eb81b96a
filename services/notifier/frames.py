"""The bytes on the wire: HTTP chunks of Server-Sent Events, WebSocket frames. Pure functions.

An event has the same JSON everywhere:

    {"channel": …, "id": …, "type": …, "time": …, "event_id": …, "source": …, "subject": …, "data": …}

The notifier's own messages have no channel: `{"type": …, "id": …, "data": {…}}`.

    ready     the stream is live; `id` is the end of the log
    gap       the events after `data.after` are missing: fetch the current state again; live from `id` on
    expired   the token has expired: get a new one, resume from the last id
    evicted   the client reads too slowly: resume from the last id
    busy      the process is full or not ready: connect again
    closing   this process stops: connect again, resume from the last id
    ping      (WebSocket) no event on your channels up to `id`
    problem   (WebSocket) why the socket is being closed, as in RFC 9457

A client can resume from any `id`: keep the last one.
"""

import struct
from functools import cached_property
from typing import Any

import orjson

from services.notifier.events import Event

LAST_CHUNK = b"0\r\n\r\n"


class Run:
    """Consecutive events of one channel; each encoding is made once, when the first subscriber needs it."""

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
        """The events as one HTTP chunk of Server-Sent Events."""
        return http_chunk(self.sse)

    @cached_property
    def websocket(self) -> bytes:
        """One text frame for each event."""
        return b"".join(websocket_text(event.json(channel)) for event, channel in self.shown)


def message(type: str, id: str | None = None, **data: Any) -> bytes:
    """Return one of the notifier's own messages as JSON."""
    fields: dict[str, Any] = {"type": type}
    if id is not None:
        fields["id"] = id
    return orjson.dumps(fields | {"data": data})


def sse_message(type: str, id: str | None = None, **data: Any) -> bytes:
    """Return one of the notifier's own messages as a Server-Sent Event."""
    lines = b"id: %b\n" % id.encode() if id is not None else b""
    return lines + b"event: %b\ndata: %b\n\n" % (type.encode(), message(type, id, **data))


def sse_ping(id: str) -> bytes:
    """Return a comment that dispatches no event, but advances the id that a browser will resume from.

    An `id` without `data` is stored and not dispatched. Without it, a reader of quiet channels would resume from an
    event that is no longer in the window.
    """
    return b": ping\nid: %b\n\n" % id.encode()


def http_chunk(data: bytes) -> bytes:
    """Return `data` as one chunk (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def websocket_text(payload: bytes) -> bytes:
    """Return `payload` as one unfragmented text frame of a server, unmasked (RFC 6455, 5.2)."""
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
