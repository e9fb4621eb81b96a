"""Decode every message that RabbitMQ delivers, also with properties that the client libraries cannot decode.

Both client libraries close the connection when they cannot decode a property: a time beyond the year 9999 (which is
what milliseconds or microseconds in a field for seconds are), an unknown field type, text that is not UTF-8.
RabbitMQ then delivers the same message again, so one foreign message would stop a queue or a stream. With these
functions in place

- a time or a decimal that Python cannot represent is None,
- a routing key or property that is not UTF-8 has U+FFFD in place of the wrong bytes (aio_pika; pika returns bytes),
- any other undecodable property makes the message one without properties, which `from_headers` then refuses.

They replace private functions of pika 1.4 and pamqp 4.0 (used by aio_pika): pyproject.toml pins both to these versions,
and tests/unit/test_amqp_fields.py checks the functions that are replaced.
"""

import datetime
import struct
from collections.abc import Callable
from typing import Any

import pamqp.decode
import pamqp.header
import pika.data
import pika.spec

from bellhop.observe.logs import get_logger

_SIZES = {b"T": 8, b"d": 8, b"f": 4}
"""Bytes behind the field's type (https://www.rabbitmq.com/amqp-0-9-1-errata#section_3)."""

_HEADER = struct.Struct(">HHQ")
"""A content header begins with class, weight and body size (AMQP 0-9-1, 2.3.5.2)."""

_pika_value = pika.data.decode_value
_pika_properties: Callable[..., pika.BasicProperties] = pika.spec.BasicProperties.decode
_pamqp_timestamp = pamqp.decode.timestamp
_pamqp_header = pamqp.header.ContentHeader.unmarshal

log = get_logger(__name__)


def patch_pika_field_decoding() -> None:
    """Replace the decoders of pika and pamqp in this process; call it when a service starts. Idempotent."""
    pika.data.decode_value = decode_value
    pika.spec.BasicProperties.decode = decode_properties  # type: ignore[method-assign]
    for table, name in ((pamqp.decode.METHODS, "timestamp"), (pamqp.decode.TABLE_MAPPING, b"T")):
        table[name] = decode_timestamp  # type: ignore[index]
    pamqp.decode.METHODS["shortstr"] = decode_short_string
    pamqp.header.ContentHeader.unmarshal = decode_header  # type: ignore[method-assign]


def decode_value(encoded: bytes, offset: int) -> tuple[Any, int]:
    """Decode one field of a table; pika calls this for nested ones, too."""
    try:
        return _pika_value(encoded, offset)
    except (ValueError, OverflowError, OSError):
        size = _SIZES.get(encoded[offset : offset + 1])
        if size is None:
            raise
        return None, offset + 1 + size


def decode_properties(self: pika.BasicProperties, encoded: bytes, offset: int = 0) -> pika.BasicProperties:
    """Decode a message's properties; where that is impossible, return none at all."""
    try:
        return _pika_properties(self, encoded, offset)
    except Exception as error:  # any error that is raised here closes the connection, again at each redelivery
        _report(error)
        self.__init__()  # type: ignore[misc]
        return self


def decode_timestamp(value: bytes) -> tuple[int, datetime.datetime | None]:
    """Decode 8 bytes of seconds since 1970; None where Python has no such time."""
    try:
        return _pamqp_timestamp(value)
    except (ValueError, OverflowError, OSError):
        return 8, None


def decode_short_string(value: bytes) -> tuple[int, str]:
    """Decode a length byte and that much text."""
    end = value[0] + 1
    return end, value[1:end].decode("utf-8", "replace")


def decode_header(self: pamqp.header.ContentHeader, data: bytes) -> None:
    """Decode a message's size and properties; where the latter is impossible, leave them empty."""
    try:
        _pamqp_header(self, data)
    except Exception as error:  # any error that is raised here closes the connection, again at each redelivery
        _report(error)
        self.class_id, self.weight, self.body_size = _HEADER.unpack_from(data)
        self.properties = pamqp.commands.Basic.Properties()


def _report(error: Exception) -> None:
    log.warning("the properties of a message cannot be decoded; it is read without them", reason=str(error))
