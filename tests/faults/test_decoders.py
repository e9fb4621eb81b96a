"""Whatever lies on a queue, a consumer either handles it or says `Reject`: anything else would go round for hours."""

import json
import math
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pika.spec import Basic, BasicProperties

from bellhop.amqp.decoding import decode, undecodable
from bellhop.amqp.errors import Reject
from bellhop.amqp.message import ATTEMPT, Delivery, Message, from_headers, to_headers
from bellhop.contracts.mail import MailTask
from bellhop.contracts.tasks import CancelTask
from bellhop.sql.database import Database
from bellhop.sql.group_commit import GroupCommit
from bellhop.sql.migrations import migrate
from bellhop.tasks.decoding import decode as decode_mail
from services.gateway import handlers as gateway_handlers
from services.gateway.dead_letters.store import DeadLetters
from services.gateway.outbox.store import pack, unpack
from services.gateway.tasks.live import LiveOutcomes
from services.gateway.tasks.store import Ledger
from services.gateway.tasks.waiters import Waiters
from services.leaderboard.scores import read
from services.notifier.events import read_event
from services.notifier.hub import Hub
from services.notifier.log import Log
from services.notifier.reader import Reader

QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
STORED = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
# What pika makes of the field types of AMQP 0-9-1: bytes where a string is no UTF-8.
FIELD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | TEXT
    | st.binary(max_size=50)
    | st.datetimes(timezones=st.just(UTC))
    | st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-10_000, max_value=10_000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OURS = [
    "cloudEvents:id", "cloudEvents:source", "cloudEvents:type", "cloudEvents:time", "cloudEvents:subject", ATTEMPT,
    "traceparent", "bellhop-reason", "bellhop-error", "bellhop-queue", "bellhop-died-at", "x-death",
    "x-first-death-queue", "x-first-death-reason",
]  # fmt: skip
FOREIGN_HEADERS = st.dictionaries(st.sampled_from(OURS) | TEXT | st.binary(max_size=20), FIELD, max_size=8)
GOOD = {
    "cloudEvents:id": "e-1",
    "cloudEvents:source": "/tests",
    "cloudEvents:type": "mail.sent",
    "cloudEvents:time": "2026-01-01T00:00:00+00:00",
    ATTEMPT: 1,
}
HEADERS = (
    FOREIGN_HEADERS | FOREIGN_HEADERS.map(lambda found: GOOD | found) | FOREIGN_HEADERS.map(lambda found: found | GOOD)
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["task_id", "round", "attempt", "state", "at", "owner", "to", "subject", "text", "html", "template", "data", "lane",
     "scores", "board", "player", "score", "id", "channels", "title", "body", "key", "reply", "code", "event_id", "top",
     "entered", "left", "changed", "players", "as_of", "season", "headers", "reply_to", "uncertain", "retry_at"]
)  # fmt: skip
VALUES = JSON | st.sampled_from(
    [0, 1, -1, 2**31, 2**63, 2**64, 10**400, 1e308, "2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00",
     "9999-12-31T23:59:59-14:00", "sent", "queued", "retrying", "failed", "normal", "ada@example.com", "\x00",
     "x" * 5000]
)  # fmt: skip
DOCUMENTS = (
    st.dictionaries(FIELDS, VALUES, max_size=10)
    | JSON
    | st.lists(st.dictionaries(FIELDS, VALUES, max_size=5), max_size=3).map(lambda items: {"scores": items})
)
BODIES = (
    st.binary(max_size=100)
    | DOCUMENTS.map(lambda value: json.dumps(value).encode())
    | DOCUMENTS.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    | st.sampled_from(
        [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"NaN", b'{"a": 1e400}', b"\xef\xbb\xbf{}", b"\xff", b'"\\ud800"',
         b"9" * 5000, b'{"a": ' * 5000 + b"1" + b"}" * 5000]
    )
)  # fmt: skip
GOOD_OUTCOME: dict[str, Any] = {"task_id": "t", "state": "sent", "at": "2026-01-01T00:00:00Z"}


def outcome(**changes: Any) -> bytes:
    return json.dumps(GOOD_OUTCOME | changes).encode()


OUTCOMES = st.dictionaries(FIELDS | st.sampled_from(["enhanced", "relay", "message_id"]), VALUES, max_size=5).map(
    lambda found: json.dumps(GOOD_OUTCOME | found).encode()
)


def delivery(body: bytes, headers: dict[Any, Any] | None = None, type: str | None = None) -> Delivery:
    """Decode as a consumer does; what has no envelope of ours is wrapped as it is for the dead letters."""
    method = Basic.Deliver("tag", 1, False, "work", "mail.normal")
    properties = BasicProperties(headers=headers, type=type)
    try:
        return decode("mail.normal", method, properties, body)
    except ValueError:
        return undecodable("mail.normal", method, properties, body, "wrong")


@QUICK
@given(headers=HEADERS, body=BODIES)
def test_an_envelope_is_read_or_refused_with_a_sentence(headers: dict[Any, Any], body: bytes) -> None:
    """A `ValueError` with a text, or a delivery that can be written down again and published again."""
    method = Basic.Deliver("tag", 1, False, "work", "mail.normal")
    try:
        found = decode("mail.normal", method, BasicProperties(headers=headers), body)
    except ValueError as error:
        assert str(error)
        found = undecodable("mail.normal", method, BasicProperties(headers=headers), body, "wrong")
    message = Message(found.body, found.envelope, attempt=found.attempt)
    BasicProperties(headers=to_headers(message), type=found.envelope.type, app_id=found.envelope.source[:255]).encode()
    assert unpack(pack(message), found.body).envelope.id == found.envelope.id


@QUICK
@given(body=BODIES)
def test_the_mailer_decodes_or_rejects(body: bytes) -> None:
    """No other exception."""
    for contract in (MailTask, CancelTask):
        try:
            decode_mail(contract, delivery(body, GOOD))
        except Reject as error:
            assert str(error)


@QUICK
@given(body=BODIES)
@example(b'{"scores": [{"board": "b", "player": "p", "score": NaN}]}')
def test_the_leaderboard_decodes_or_rejects(body: bytes) -> None:
    """No other exception; and what it takes is finite."""
    try:
        scores = read([delivery(body, GOOD)])
    except Reject as error:
        assert str(error)
    else:
        assert all(map(math.isfinite, scores.scores.tolist()))


@QUICK
@given(
    headers=HEADERS,
    body=BODIES,
    type=st.sampled_from(["notification.raised", "leaderboard.changed", "mail.sent", "other"]),
)
def test_the_notifier_shows_or_skips(headers: dict[Any, Any], body: bytes, type: str) -> None:
    """Nothing on the stream stops the reader: what it cannot show, it counts and passes."""
    hub = Hub(Log(events=10, size=10_000, seconds=60), max_subscribers=1, max_per_subject=1, ping_seconds=15)
    reader = Reader(hub, "amqp://nobody/", name="test", window_seconds=60, live_types={"other": "{type}:{subject}"})
    try:
        envelope = from_headers({**headers, "cloudEvents:type": type})
    except ValueError:
        return
    reader._read(Delivery(body, envelope, 1, headers, "notifier.log", "", "", False, 7))
    assert read_event  # the same function that the reader calls


@pytest.fixture
async def store(tmp_path: Path, database_url: str) -> Any:
    await migrate(database_url, "services.gateway")
    database = Database(database_url)
    commits = GroupCommit(database)
    yield SimpleNamespace(
        commits=commits,
        ledger=Ledger(database),
        dead_letters=DeadLetters(database),
        waiters=Waiters(),
        live=AsyncMock(spec=LiveOutcomes),
    )
    await commits.close()
    await database.close()


@pytest.mark.timeout(180)
@STORED
@given(body=OUTCOMES | BODIES)
@example(outcome(attempt=2**31))
@example(outcome(attempt=2**63))
@example(outcome(round=2**63))
@example(outcome(code=2**63))
@example(outcome(enhanced="5" * 17, relay="r" * 256, reply="r" * 100_000))
@example(outcome(event_id="e" * 2000, to="ada@example.com", template="t" * 200, lane="l" * 20))
@example(outcome(at="0001-01-01T00:00:00+14:00"))
@example(outcome(at="9999-12-31T23:59:59-14:00", retry_at="9999-12-31T23:59:59-14:00"))
@example(outcome(task_id="t" * 255))
async def test_an_outcome_is_applied_or_rejected(store: Any, body: bytes) -> None:
    """On both databases: no value that the contract lets through is one that a column refuses."""
    try:
        await gateway_handlers.apply_outcome(store, delivery(body, GOOD))
    except Reject as error:
        assert str(error)


@pytest.mark.timeout(180)
@STORED
@given(headers=HEADERS, body=BODIES, type=TEXT)
@example(GOOD | {"cloudEvents:type": "t" * 1024}, b"", "")
@example(GOOD | {"cloudEvents:id": "a\x00b"}, b"", "t\x00")
@example(GOOD | {"bellhop-died-at": "yesterday", "bellhop-reason": "r" * 100, "bellhop-queue": "q\x00"}, b"", "")
@example(GOOD | {"bellhop-error": b"\x00\xff", "x-death": ["no table"]}, b"", "")
@example(GOOD | {ATTEMPT: 2**40}, b"", "")
async def test_every_dead_letter_is_stored(store: Any, headers: dict[Any, Any], body: bytes, type: str) -> None:
    """On both databases, whatever it is: a dead letter that cannot be stored has nowhere else to go."""
    await gateway_handlers.store_dead_letter(store, delivery(body, headers, type))
