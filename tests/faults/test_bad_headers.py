"""Foreign messages on the wire: whatever a header holds, the queue behind it goes on."""

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bellhop.amqp.fields import patch_pika_field_decoding
from bellhop.amqp.message import Message, to_headers
from bellhop.contracts.envelope import Envelope
from tests.services.gateway_support import RunningGateway, running_gateway
from tests.support import Vhost, wait_until
from tests.support.raw import Raw, field, publish, text


def envelope() -> bytes:
    """Return the headers of a message of ours."""
    headers = to_headers(Message(b"", Envelope(type="mail.sent", source="/foreign")))
    return b"".join(text(name.encode(), str(value).encode()) for name, value in headers.items() if name != "attempt")


WEIRD = {
    "a number that is none": field(b"n", b"d", struct.pack(">d", float("nan"))),
    "a number without end": field(b"n", b"d", struct.pack(">d", float("inf"))),
    "a double beyond 64 bits": field(b"n", b"d", struct.pack(">d", 1e300)),
    "a single that is none": field(b"n", b"f", struct.pack(">f", float("nan"))),
    "a time beyond the year 9999": field(b"t", b"T", struct.pack(">Q", 2**63 - 1)),
    "bytes as a name": text(b"\xff\xfe", b"value"),
    "bytes as a value": text(b"name", b"\xff\xfe"),
    "our own header as bytes": text(b"cloudEvents:id", b"\xff"),
    "a header of ours that is a table": field(b"bellhop-reason", b"F", struct.pack(">I", 0)),
    "a time that is none": text(b"bellhop-died-at", b"yesterday"),
    "a NUL": text(b"bellhop-error", b"a\x00b"),
    "deaths that are none": field(b"x-death", b"A", struct.pack(">I", 5) + b"I" + struct.pack(">i", 1)),
    "a decimal": field(b"d", b"D", struct.pack(">Bi", 255, 2**31 - 1)),
    "much": b"".join(text(b"h%d" % number, b"x" * 1000) for number in range(110)),
    "an attempt of the far future": field(b"attempt", b"l", struct.pack(">q", 2**62)),
}

# RabbitMQ ends the connection of whoever sends one of these.
NOT_ERLANG = {"a number that is none", "a number without end", "a single that is none"}


@pytest.fixture
async def gateway(vhost: Vhost, tmp_path: Path) -> AsyncIterator[RunningGateway]:
    patch_pika_field_decoding()  # as a service does when it starts
    async with running_gateway(vhost, f"sqlite+aiosqlite:///{tmp_path}/gateway.db") as running:
        yield running


@pytest.mark.parametrize("where", ["outcomes", "dead"])
@pytest.mark.parametrize("ours", [False, True], ids=["foreign", "with our envelope"])
async def test_a_strange_message_becomes_a_dead_letter(gateway: RunningGateway, where: str, ours: bool) -> None:
    """Each is stored with a reason, once, and what lies behind it on the queue is handled."""
    url = gateway.vhost.amqp_url
    for table in WEIRD.values():
        publish(url, where, "mail.normal.sent", Raw((envelope() if ours else b"") + table, b"\xff"))
    taken = len(WEIRD) - len(NOT_ERLANG)

    async def stored() -> bool:
        found = (await gateway.admin.get("/v1/dead-letters?limit=500")).json()["dead_letters"]
        assert len(found) <= taken
        return len(found) == taken

    await wait_until(stored, 30, f"{taken} dead letters")
    assert await gateway.vhost.depth("dead-letters") == 0
    assert await gateway.vhost.depth("gateway.outcomes") == 0
    assert (await gateway.admin.get("/readyz")).status_code == 200
