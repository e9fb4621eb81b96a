"""Messages as no well-behaved client library writes them."""

import struct
from typing import Any

import pika
from pika.exceptions import ConnectionClosedByBroker


class Raw(pika.BasicProperties):
    """Properties whose header table is written by hand."""

    def __init__(self, table: bytes = b"", type: bytes = b"", timestamp: int = 0) -> None:
        super().__init__(headers={"x": 1}, delivery_mode=2)
        self._table = table
        self._type = type
        self._timestamp = timestamp

    def encode(self) -> list[bytes]:
        flags = self.FLAG_HEADERS | self.FLAG_DELIVERY_MODE | (self.FLAG_TYPE if self._type else 0)
        flags |= self.FLAG_TIMESTAMP if self._timestamp else 0
        pieces = [struct.pack(">H", flags), struct.pack(">I", len(self._table)) + self._table, b"\x02"]
        if self._timestamp:
            pieces.append(struct.pack(">Q", self._timestamp))
        if self._type:
            pieces.append(bytes([len(self._type)]) + self._type)
        return pieces


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def text(name: bytes, value: bytes) -> bytes:
    return field(name, b"S", struct.pack(">I", len(value)) + value)


def publish(url: str, exchange: str, key: str | bytes, properties: Any) -> None:
    """Publish with a client that checks nothing."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    try:
        channel.basic_publish(exchange, key, b"\xff not json", properties, mandatory=True)
    except ConnectionClosedByBroker:
        return
    connection.close()
