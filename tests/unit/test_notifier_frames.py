"""The bytes of the notifier, read by other implementations."""

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.streams import StreamReader

from services.notifier.frames import http_chunk, sse_message, sse_ping, websocket_close, websocket_text


def parse(data: bytes) -> Frame:
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    parsing = Frame.parse(reader.read_exact, mask=False)
    try:
        while True:
            next(parsing)
    except StopIteration as end:
        frame: Frame = end.value
        return frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
def test_a_text_frame_is_what_websockets_reads(size: int) -> None:
    """All three ways to write a length (RFC 6455, 5.2)."""
    frame = parse(websocket_text(b"x" * size))
    assert (frame.opcode, frame.fin, bytes(frame.data)) == (Opcode.TEXT, True, b"x" * size)


def test_a_close_frame_keeps_within_its_limit() -> None:
    """A control frame has at most 125 bytes, and its reason must stay UTF-8 when it is cut."""
    frame = parse(websocket_close(3000, "ä" * 200))
    assert len(frame.data) <= 125
    close = Close.parse(bytes(frame.data))
    assert close.code == 3000
    assert set(close.reason) == {"ä"}


def test_a_chunk_says_its_length() -> None:
    """In hexadecimal (RFC 9112, 7.1)."""
    assert http_chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"


def test_a_message_of_our_own_names_its_type_twice() -> None:
    """For listeners of `event:` and for those who read the data alone."""
    assert sse_message("gap", "ab:1", detail="d") == (
        b'id: ab:1\nevent: gap\ndata: {"type":"gap","id":"ab:1","data":{"detail":"d"}}\n\n'
    )


def test_a_ping_dispatches_nothing_but_moves_the_id() -> None:
    """It has an id and no data."""
    assert sse_ping("ab:1") == b": ping\nid: ab:1\n\n"
