"""The private parts of the client libraries that `bellhop/amqp/fields.py` replaces, and that it takes them all."""

import struct
from collections.abc import Iterator

import pamqp.commands
import pamqp.decode
import pamqp.frame
import pamqp.header
import pika.data
import pika.frame
import pika.spec
import pytest

from bellhop.amqp.fields import patch_pika_field_decoding

FAR_FUTURE = struct.pack(">Q", 2**63 - 1)


@pytest.fixture(autouse=True)
def tolerant() -> Iterator[None]:
    """Replace the functions, and put them back for the other tests of this process."""
    patched = (
        (pika.data, "decode_value"),
        (pika.spec.BasicProperties, "decode"),
        (pamqp.header.ContentHeader, "unmarshal"),
    )
    before = [getattr(owner, name) for owner, name in patched]
    methods, fields = dict(pamqp.decode.METHODS), dict(pamqp.decode.TABLE_MAPPING)
    patch_pika_field_decoding()
    yield
    for (owner, name), value in zip(patched, before, strict=True):
        setattr(owner, name, value)
    pamqp.decode.METHODS.update(methods)
    pamqp.decode.TABLE_MAPPING.update(fields)


def frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def header(flags: int, properties: bytes) -> bytes:
    """Return the header frame of a message with a body of 7 bytes."""
    return frame(2, struct.pack(">HHQH", 60, 0, 7, flags) + properties)


def table(field: bytes) -> bytes:
    return header(0x2000, struct.pack(">I", len(field)) + field)


WRONG = {
    "a timestamp property": header(0x0040, FAR_FUTURE),
    "a time in a header": table(b"\x01tT" + FAR_FUTURE),
    "a name that is not UTF-8": table(b"\x01\xfft\x01"),
    "a field type that does not exist": table(b"\x01t?\x01"),
    "a type property that is not UTF-8": header(0x0020, b"\x01\xff"),
    "properties that end too early": header(0x2000, b"\x00\x00"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_every_header_frame_is_decoded(wrong: bytes) -> None:
    """By both libraries, with the size of the body: without it the bytes that follow could not be read."""
    _, _, ours = pamqp.frame.unmarshal(wrong)
    assert isinstance(ours, pamqp.header.ContentHeader)
    assert ours.body_size == 7
    _, theirs = pika.frame.decode_frame(wrong)
    assert isinstance(theirs, pika.frame.Header)
    assert theirs.body_size == 7


def test_one_wrong_time_costs_no_other_property() -> None:
    """The headers beside it are there: among them the offset in a stream."""
    wrong = table(b"\x01tT" + FAR_FUTURE + b"\x01oI" + struct.pack(">i", 5))
    _, _, ours = pamqp.frame.unmarshal(wrong)
    assert isinstance(ours, pamqp.header.ContentHeader)
    assert ours.properties.headers == {"t": None, "o": 5}
    _, theirs = pika.frame.decode_frame(wrong)
    assert isinstance(theirs, pika.frame.Header)
    assert theirs.properties.headers == {"t": None, "o": 5}


def test_a_routing_key_that_is_not_utf8_is_decoded() -> None:
    """It stands in the frame before the header, and anybody may choose it."""
    deliver = struct.pack(">HH", 60, 60) + b"\x01t" + struct.pack(">QB", 1, 0) + b"\x01e" + b"\x02\xffk"
    _, _, found = pamqp.frame.unmarshal(frame(1, deliver))
    assert isinstance(found, pamqp.commands.Basic.Deliver)
    assert found.routing_key == "\ufffdk"
    _, method = pika.frame.decode_frame(frame(1, deliver))
    assert isinstance(method, pika.frame.Method)
    assert method.method.routing_key == b"\xffk"
