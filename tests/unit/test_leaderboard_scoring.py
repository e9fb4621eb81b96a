"""Seasons, and reading scores from messages."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import orjson
import pytest

from bellhop.amqp.errors import Reject
from bellhop.amqp.message import Delivery
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.scores import EXACT, Season
from services.leaderboard.scores import read
from services.leaderboard.scoring import season_of, split_by_season, to_micros

AT = "2026-11-21T09:00:00Z"


def delivery(body: bytes) -> Delivery:
    envelope = Envelope(type="score.submitted", source="test", time=datetime(2026, 11, 21, 12, tzinfo=UTC))
    return Delivery(body, envelope, 1, {}, "leaderboard.scores", "events", "score.submitted", False)


def message(*scores: dict) -> Delivery:
    return delivery(orjson.dumps({"scores": list(scores)}))


def score(**fields) -> dict:
    return {"board": "b", "player": "p", "score": 1.0, "at": AT} | fields


@pytest.mark.parametrize(
    ("day", "season", "name"),
    [
        (date(2026, 11, 21), Season.NONE, ""),
        (date(2026, 11, 21), Season.DAILY, "2026-11-21"),
        (date(2026, 11, 22), Season.WEEKLY, "2026-W47"),
        (date(2026, 11, 23), Season.WEEKLY, "2026-W48"),
        (date(2027, 1, 1), Season.WEEKLY, "2026-W53"),
        (date(2026, 11, 21), Season.MONTHLY, "2026-11"),
    ],
)
def test_a_season_has_the_name_of_its_day_week_or_month(day, season, name):
    """Weeks begin on Monday and belong to the year of their Thursday (ISO 8601)."""
    assert season_of(day, season) == name


def test_scores_fall_into_seasons_by_their_own_time_in_utc():
    """The last microsecond of a week and the first of the next are different seasons."""
    monday = datetime(2026, 11, 23, tzinfo=UTC)
    times = [monday, monday - timedelta(microseconds=1), monday + timedelta(days=6)]
    parts = split_by_season(np.array([to_micros(time) for time in times]), Season.WEEKLY)
    assert {name: indices.tolist() for name, indices in parts.items()} == {"2026-W47": [1], "2026-W48": [0, 2]}


def test_scores_are_read_in_columns():
    """What the gateway writes comes out as it went in."""
    scores = read([message(score(), score(player="q", score=2, id="x")), message(score(board="c", score=-0.0))])
    assert scores.boards == ["b", "b", "c"]
    assert scores.players == ["p", "q", "p"]
    assert [str(value) for value in scores.scores.tolist()] == ["1.0", "2.0", "0.0"]
    assert scores.ids == [None, "x", None]
    assert scores.message.tolist() == [0, 0, 1]
    assert scores.at.tolist() == [to_micros(datetime(2026, 11, 21, 9, tzinfo=UTC))] * 3


@pytest.mark.parametrize("at", [None, "missing"])
def test_a_score_without_a_time_was_reached_when_its_event_happened(at):
    """Somebody who publishes straight to the exchange may leave the time out."""
    fields = score(at=None)
    if at == "missing":
        del fields["at"]
    assert read([message(fields)]).at.tolist() == [to_micros(datetime(2026, 11, 21, 12, tzinfo=UTC))]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"scores": []}',
        b'{"scores": {}}',
        b'{"scores": "abcd"}',
        b'{"scores": [1]}',
        b'{"scores": [NaN]}',
        orjson.dumps({"scores": [score()] * 1001}),
        orjson.dumps({"scores": [score(score="1")]}),
        orjson.dumps({"scores": [score(score=True)]}),
        orjson.dumps({"scores": [score(score=None)]}),
        orjson.dumps({"scores": [score(score=EXACT * 2)]}),
        b'{"scores": [{"board":"b","player":"p","score":1e999,"at":"2026-11-21T09:00:00Z"}]}',
        b'{"scores": [{"board":"b","player":"p","score":%s,"at":"2026-11-21T09:00:00Z"}]}' % (b"9" * 400),
        orjson.dumps({"scores": [score(player="")]}),
        orjson.dumps({"scores": [score(player="p\n")]}),
        orjson.dumps({"scores": [score(player="p" * 129)]}),
        orjson.dumps({"scores": [score(player=["p"])]}),
        orjson.dumps({"scores": [score(board="a b")]}),
        orjson.dumps({"scores": [score(board=7)]}),
        orjson.dumps({"scores": [score(at="2026-11-21T09:00:00")]}),
        orjson.dumps({"scores": [score(at="yesterday")]}),
        orjson.dumps({"scores": [score(at="0001-01-01T00:00:00+14:00")]}),
        orjson.dumps({"scores": [score(at={})]}),
        orjson.dumps({"scores": [score(id="")]}),
        orjson.dumps({"scores": [score(id="a\nb")]}),
        orjson.dumps({"scores": [score(id=7)]}),
    ],
)
def test_what_breaks_the_contract_is_rejected_with_a_reason(body):
    """Anybody with rights on the exchange can put anything on the queue: it becomes a dead letter."""
    with pytest.raises(Reject, match=r"not a score\.submitted: .+"):
        read([message(score()), delivery(body)])
