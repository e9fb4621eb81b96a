"""What is bounded in bytes, because its number alone bounds nothing."""

import pytest

from bellhop.amqp.message import Message
from bellhop.contracts.envelope import Envelope
from services.gateway.dead_letters.routes import SHOWN_BYTES, _shown
from services.gateway.outbox import publisher as relay_module
from services.gateway.outbox.publisher import OutboxPublisher
from services.gateway.outbox.store import Entry


class Broker:
    """A publisher that could publish."""

    failure = None


def entry(size: int) -> Entry:
    return Entry("work", "mail.normal", Message(b"x" * size, Envelope(type="t", source="s")))


def test_the_relay_takes_no_more_than_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has no memory for stays in the outbox, however few messages that are."""
    monkeypatch.setattr(relay_module, "MAX_IN_MEMORY_BYTES", 1000)
    outbox_publisher = OutboxPublisher(None, None, Broker(), None)  # type: ignore[arg-type]
    outbox_publisher.hand_over([entry(600)])
    assert outbox_publisher.has_capacity

    outbox_publisher.hand_over([entry(600)])

    assert not outbox_publisher.has_capacity


def test_of_a_large_dead_letter_the_beginning_is_shown() -> None:
    """It is not read as JSON, which would take seconds; a small one is."""
    assert _shown(b'{"a":1}') == {"a": 1}
    assert _shown(b"\xff") == "\ufffd"

    shown = _shown(b"[" + b"0," * SHOWN_BYTES + b"0]")

    assert isinstance(shown, str)
    assert len(shown) == SHOWN_BYTES
