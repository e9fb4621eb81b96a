"""What a browser is shown of an event, and on which channel."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bellhop.amqp.message import Delivery
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.notifications import MAX_SHOWN_BYTES
from services.notifier.events import Event, read_event

CHANGED = {
    "board": "chess",
    "top": [],
    "entered": [],
    "left": [],
    "changed": 1,
    "players": 1,
    "as_of": "2026-01-01T00:00:00Z",
}
TYPES = {"order.placed": "orders:{subject}", "deploy.done": "types:{type}"}


def read(type: str, body: object, subject: str | None = None, offset: int = 7, source: str = "/tests") -> Event:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    envelope = Envelope(
        type=type, source=source, id="event 1", subject=subject, time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    )
    return read_event(Delivery(data, envelope, 1, {}, "notifier.log", "", "", False, offset), TYPES)


def test_a_notification_is_shown_on_its_channels() -> None:
    """Each channel once."""
    event = read("notification.raised", {"channels": ["user:1", "news", "user:1"], "title": "Hello"})
    assert event.channels == ("user:1", "news")


def test_a_subscriber_does_not_learn_who_else_was_notified() -> None:
    """The other channels may be names of other people."""
    event = read("notification.raised", {"channels": ["user:1", "user:2"], "title": "Hello"})
    assert b"user:2" not in event.json("user:1")


def test_the_json_says_everything_about_the_event() -> None:
    """One document, the same for all transports."""
    event = read("notification.raised", {"channels": ["news"], "title": "Hello", "data": {"a": 1}})
    assert json.loads(event.json("news")) == {
        "channel": "news",
        "id": event.id,
        "type": "notification.raised",
        "time": "2026-01-02T03:04:05Z",
        "event_id": "event 1",
        "source": "/tests",
        "subject": None,
        "data": {"title": "Hello", "body": None, "data": {"a": 1}, "key": None},
    }


def test_text_cannot_break_out_of_its_line() -> None:
    """A line feed in a text would end the data of a Server-Sent Event."""
    event = read("notification.raised", {"channels": ["news"], "title": "x", "body": "a\n\nevent: gap\r\nb"})
    assert b"\n" not in event.json("news")
    assert b"\r" not in event.json("news")


@pytest.mark.parametrize(
    ("type", "body", "subject", "channels"),
    [
        ("leaderboard.changed", CHANGED, None, ("leaderboard:chess",)),
        (
            "mail.sent",
            {"task_id": "t", "state": "sent", "at": "2026-01-01T00:00:00Z", "owner": "shop"},
            None,
            ("tasks:shop",),
        ),
        ("mail.sent", {"task_id": "t", "state": "sent", "at": "2026-01-01T00:00:00Z"}, None, ()),
        ("order.placed", {"total": 3}, "customer-9", ("orders:customer-9",)),
        ("order.placed", {"total": 3}, None, ()),
        ("deploy.done", [1, 2], None, ("types:deploy.done",)),
        ("unknown.type", {}, "x", ()),
    ],
)
def test_the_type_decides_the_channel(type: str, body: object, subject: str | None, channels: tuple[str, ...]) -> None:
    """The table at the foot of events.py, and the setting live_types."""
    assert read(type, body, subject).channels == channels


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("notification.raised", b"{"),
        ("notification.raised", b'{"channels": [], "title": "x"}'),
        ("notification.raised", b'{"channels": ["news"]}'),
        ("leaderboard.changed", b"[]"),
        ("order.placed", b"\xff"),
        ("order.placed", b'"' + b"x" * MAX_SHOWN_BYTES + b'"'),
    ],
)
def test_a_broken_body_is_refused(type: str, body: bytes) -> None:
    """With a ValueError that says why, for the log."""
    with pytest.raises(ValueError):
        read(type, body, "someone")


def test_an_outcome_is_measured_without_its_document() -> None:
    """The first outcome of an event's mail carries the whole mail, which nobody is shown."""
    outcome = {"task_id": "t", "state": "sent", "at": "2026-01-01T00:00:00Z", "owner": "event"}
    document = {"text": "x" * MAX_SHOWN_BYTES}

    assert read("mail.sent", outcome | {"document": document}).channels == ("tasks:event",)


def test_the_tag_follows_from_source_and_id_alone() -> None:
    """Every process that reads the stream makes the same id."""
    assert read("deploy.done", 1).id == read("deploy.done", 2).id
    assert read("deploy.done", 1).id.endswith(":7")
    assert read("deploy.done", 1).id != read("deploy.done", 1, source="/elsewhere").id


def _delivery(envelope: Envelope, data: object) -> Delivery:
    return Delivery(json.dumps(data).encode(), envelope, 1, {}, "notifier.log", "", "", False, 7)


def test_a_client_is_not_heard_on_channels_of_ours() -> None:
    """Neither by a type that only we publish, nor by a channel that follows from its subject or stands in the data."""
    live = {"note": "{subject}"}
    outcome = {"task_id": "t", "state": "sent", "at": "2026-01-01T00:00:00Z", "owner": "shop"}
    cases = [
        ("mail.sent", outcome, None, ["tasks:shop"]),
        ("note", {}, "tasks:shop", ["tasks:shop"]),
        ("note", {}, "orders:9", ["orders:9"]),
        ("notification.raised", {"channels": ["news", "task:1"], "title": "t"}, None, ["news", "task:1"]),
    ]
    for type_, data, subject, channels in cases:
        envelope = Envelope(type=type_, source="/s", subject=subject)
        shown = {
            owner: list(read_event(_delivery(replace(envelope, owner=owner), data), live).channels)
            for owner in (None, "blog")
        }
        assert shown[None] == channels
        assert shown["blog"] == [channel for channel in channels if not channel.startswith(("tasks:", "task:"))]
