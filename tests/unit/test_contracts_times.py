"""Times: what is accepted can be shown again by every reader."""

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from pydantic import TypeAdapter, ValidationError

from bellhop.contracts.base import EARLIEST, LATEST, DueTime, Time, now
from bellhop.contracts.mail import MailRequest
from bellhop.contracts.scores import Score
from bellhop.web.problems import Problem
from services.gateway.broadcasts.routes import BroadcastRequest
from services.gateway.events.cloudevents import read
from services.gateway.outbox.store import to_ms
from services.gateway.subscribers.routes import SuppressionRequest
from services.gateway.tasks.routes import time_of

_TIME: TypeAdapter[datetime] = TypeAdapter(Time)
_DUE: TypeAdapter[datetime] = TypeAdapter(DueTime)

NO_TIMES = [
    0,
    -1,
    20_000_000_000,
    1_800_000_000.5,
    True,
    "1800000000",
    "2026-11-25",
    "2026-11-25T18:40:00",
    "2026-02-30T00:00:00Z",
    "2026-11-25T18:40:00+25:00",
    "2026-11-25T18:40:00Z\n",
    "0001-01-01T00:00:00+12:00",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:59.9999999Z",
    "9999-12-31T23:59:59-12:00",
    "tomorrow",
]


@pytest.mark.parametrize("value", NO_TIMES)
def test_what_is_no_bounded_rfc_3339_text_is_refused(value: object) -> None:
    """Numbers, digit strings, naive times, impossible dates, and what leaves the range when shifted to UTC."""
    with pytest.raises(ValidationError, match="must be a time with its offset from UTC"):
        _TIME.validate_python(value)


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-11-25T18:40:00Z", datetime(2026, 11, 25, 18, 40, tzinfo=UTC)),
        ("2026-11-25t18:40:00.5z", datetime(2026, 11, 25, 18, 40, 0, 500_000, tzinfo=UTC)),
        ("2026-11-25 18:40:00.1234567+01:00", datetime(2026, 11, 25, 17, 40, 0, 123_456, tzinfo=UTC)),
        ("1970-01-01T01:00:00+01:00", EARLIEST),
        ("9999-12-30T05:00:00+05:00", LATEST),
    ],
)
def test_rfc_3339_text_is_taken(text: str, at: datetime) -> None:
    """Any offset, lower case and up to nine digits of a second."""
    assert _TIME.validate_python(text) == at


@pytest.mark.parametrize("at", [EARLIEST, LATEST])
def test_every_time_that_is_taken_can_be_shown(at: datetime) -> None:
    """The first and the last one, after rounding to milliseconds."""
    assert time_of(to_ms(at)) == at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@pytest.mark.parametrize("ms", [-(2**62), -62_135_596_800_001, 253_402_300_800_000, 2**62])
def test_a_stored_time_that_cannot_be_written_is_still_shown(ms: int) -> None:
    """A row from before the bounds must not make a whole list fail."""
    assert time_of(ms) in ("0001-01-01T00:00:00.000Z", "9999-12-30T00:00:00.000Z")


def test_work_is_due_within_ten_years() -> None:
    """A unit that was mistaken for another is told, not scheduled for the year 2603."""
    with pytest.raises(ValidationError, match="at most 10 years ahead"):
        _DUE.validate_python((now() + timedelta(days=3660)).isoformat())
    assert _DUE.validate_python((now() + timedelta(days=3600)).isoformat())


MAIL = {"to": "ada@example.com", "subject": "s", "text": "t"}
REQUESTS: list[tuple[Any, dict[str, Any], str]] = [
    (MailRequest, MAIL, "send_at"),
    (BroadcastRequest, {"list": "l", "subject": "s", "text": "t"}, "send_at"),
    (SuppressionRequest, {"address": "ada@example.com", "reason": "r"}, "expires_at"),
    (Score, {"board": "b", "player": "p", "score": 1}, "at"),
]


@pytest.mark.parametrize(("contract", "fields", "name"), REQUESTS)
@pytest.mark.parametrize("value", [0, "1800000000", "9999-12-31T23:59:59.9999999Z"])
def test_every_request_reads_times_in_this_one_way(
    contract: Any, fields: dict[str, Any], name: str, value: object
) -> None:
    """The field is named."""
    with pytest.raises(ValidationError) as refused:
        contract.model_validate(fields | {name: value})

    assert [error["loc"] for error in refused.value.errors()] == [(name,)]


@pytest.mark.parametrize("value", [1, "1", "9999-12-31T23:59:59-12:00"])
def test_the_time_of_an_event_is_read_in_this_way_too(value: object) -> None:
    """CloudEvents 1.0.2, 3.1: RFC 3339."""
    body = orjson.dumps({"specversion": "1.0", "id": "1", "source": "/s", "type": "a.b", "time": value})
    with pytest.raises(Problem) as refused:
        read({"content-type": "application/cloudevents+json"}, body)

    assert refused.value.extensions["errors"][0]["pointer"] == "#/time"
