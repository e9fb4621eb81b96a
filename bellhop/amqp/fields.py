"""Header fields that Python has no value for.

pika ends the connection over a header that it cannot decode, such as a time beyond the year 9999 (which is what
milliseconds in a field for seconds are). The broker hands the message out again, and again: one foreign message
would stop a queue, and every other consumer on the same connection, for ever. Here such a field is read as None.
"""

from typing import Any

from pika import data

_SIZES = {b"T": 8, b"d": 8, b"f": 4}
"""Bytes behind the field's type (https://www.rabbitmq.com/amqp-0-9-1-errata#section_3)."""

_decode_value = data.decode_value


def decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    """Decode one field as pika does; pika calls this for nested ones, too."""
    try:
        return _decode_value(encoded, offset)
    except (ValueError, OverflowError, OSError):
        size = _SIZES.get(encoded[offset : offset + 1])
        if size is None:
            raise
        return None, offset + 1 + size


def read_what_others_write() -> None:
    """Make pika decode so, for the whole process."""
    data.decode_value = decode_value
