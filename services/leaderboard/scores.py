"""Decode the bodies of messages to columns of scores, in less than a microsecond a score.

Bodies that the gateway writes take the fast path: the rules of the contract, applied to whole columns. All other bodies
are validated by the contract itself, which takes twice as long and gives the reason of a refusal.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from itertools import compress
from operator import itemgetter
from typing import Any

import numpy as np
import orjson
from pydantic import ValidationError

from bellhop.amqp.errors import Reject
from bellhop.amqp.message import Delivery
from bellhop.contracts.scores import ACCEPTED_AT, EXACT, ScoreBatch
from services.leaderboard.scoring import DAY_MICROSECONDS, Flags, Floats, Times, from_micros, to_micros

# The patterns of `PathName` in bellhop/contracts/scores.py and `Id` in bellhop/contracts/base.py.
_NAMES = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\n)+").fullmatch
_ID = re.compile("[^\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]{1,255}").fullmatch
_MAX_SCORES = 1000

MAX_WORK = 200_000
"""Work of one transaction, at most, in scores on one board: about a second."""
WORK_PER_RANKING = 15
"""Fixed cost of a ranking, in scores."""

_fields = itemgetter("board", "player", "score", "at")
_NUMBERS = {int, float}


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a batch of messages, in columns."""

    messages: list[tuple[str, str]]
    """Identity of each message."""
    accepted: Times
    """When each message was accepted, in microseconds since 1970."""
    message: Times
    """For each score, the index of its message."""
    boards: list[str]
    players: list[str]
    scores: Floats
    at: Times
    ids: list[str | None]

    def __len__(self) -> int:
        return len(self.boards)

    def document(self, index: int) -> dict[str, Any]:
        """Return one score as in a message."""
        document = {
            "board": self.boards[index],
            "player": self.players[index],
            "score": self.scores.item(index),
            "at": from_micros(self.at.item(index)),
        }
        return document if self.ids[index] is None else document | {"id": self.ids[index]}

    def only(self, wanted: Flags) -> "Scores":
        """Return the scores where `wanted` is true, of the same messages."""
        if wanted.all():
            return self
        chosen = wanted.tolist()
        return Scores(
            self.messages,
            self.accepted,
            self.message[wanted],
            list(compress(self.boards, chosen)),
            list(compress(self.players, chosen)),
            self.scores[wanted],
            self.at[wanted],
            list(compress(self.ids, chosen)),
        )


class _Micros(dict[str, int]):
    """Microseconds since 1970 by text, cached: most scores of a request have the same time."""

    def __missing__(self, text: str) -> int:
        time = datetime.fromisoformat(text)
        if time.tzinfo is None:
            raise ValueError("`at` lacks its offset from UTC")
        self[text] = micros = _representable(time)
        return micros


_Columns = tuple[tuple[str, ...], tuple[str, ...], Floats, list[int], list[str | None]]


def read(deliveries: list[Delivery]) -> Scores:
    """Return the scores of all `deliveries`.

    Raises:
        Reject: one of them breaks its contract; the text says which rule.
    """
    micros = _Micros()
    return _together(deliveries, [_read_one(delivery, micros) for delivery in deliveries])


def read_in_parts(deliveries: list[Delivery], limit: int = MAX_WORK) -> list[Scores]:
    """Do the same in parts, in order, each of up to `limit` work, or of one delivery: a delivery is never split.

    Raises:
        Reject: as `read` does.
    """
    micros = _Micros()
    columns = [_read_one(delivery, micros) for delivery in deliveries]
    parts, begin, work = [], 0, 0
    for index, one in enumerate(columns):
        cost = _work(one)
        if work and work + cost > limit:
            parts.append(_together(deliveries[begin:index], columns[begin:index]))
            begin, work = index, 0
        work += cost
    return [*parts, _together(deliveries[begin:], columns[begin:])] if columns else []


def _work(columns: _Columns) -> int:
    """Return the cost of applying the scores of one message, at most, in scores."""
    boards, days = len(set(columns[0])), len({at // DAY_MICROSECONDS for at in columns[3]})
    return len(columns[0]) + WORK_PER_RANKING * min(len(columns[0]), boards * days)


def _together(deliveries: list[Delivery], parts: list[_Columns]) -> Scores:
    return Scores(
        [delivery.envelope.identity for delivery in deliveries],
        np.array([accepted_at(delivery) for delivery in deliveries], np.int64),
        np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]),
        [board for part in parts for board in part[0]],
        [player for part in parts for player in part[1]],
        np.concatenate([part[2] for part in parts]),
        np.array([at for part in parts for at in part[3]], np.int64),
        [id for part in parts for id in part[4]],
    )


NO_SCORES = Scores([], np.empty(0, np.int64), np.empty(0, np.int64), [], [], np.empty(0), np.empty(0, np.int64), [])


def accepted_at(delivery: Delivery) -> int:
    """Return when a message was accepted, in microseconds since 1970."""
    text = delivery.headers.get(ACCEPTED_AT)
    try:
        return to_micros(datetime.fromisoformat(text))  # type: ignore[arg-type]  # of any type
    except (TypeError, ValueError):  # published by another client than a gateway
        return to_micros(delivery.envelope.time)


def _read_one(delivery: Delivery, micros: _Micros) -> _Columns:
    try:
        return _read_fast(delivery.body, micros)
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError):
        return _read_by_contract(delivery)


def _read_fast(body: bytes, micros: _Micros) -> _Columns:
    """Decode a body of the gateway; any of the exceptions above means that another client wrote it."""
    document = orjson.loads(body)
    items: list[dict[str, Any]] = document["scores"]
    if len(document) != 1 or type(items) is not list or not 1 <= len(items) <= _MAX_SCORES:
        raise ValueError
    boards, players, numbers, times = zip(*map(_fields, items), strict=True)
    lengths = set(map(len, items))
    ids: list[str | None] = [None] * len(items)
    if lengths != {4}:
        ids = [item.get("id") for item in items]
        given = [id for id in ids if id is not None]
        # Exactly these fields.
        if not lengths <= {4, 5} or sum(map(len, items)) != 4 * len(items) + sum("id" in item for item in items):
            raise ValueError
        if not all(map(_ID, given)):
            raise ValueError
    if not _are_names(players) or not _are_names(tuple(set(boards))) or not set(map(type, numbers)) <= _NUMBERS:
        raise ValueError
    scores = np.array(numbers, np.float64) + 0.0  # -0.0 becomes 0.0
    if not np.abs(scores).max() <= EXACT:
        raise ValueError
    return boards, players, scores, [micros[time] for time in times], ids


def _are_names(texts: tuple[str, ...]) -> bool:
    joined = "\n".join(texts) + "\n"
    # One match of all names costs half as much as a match of each, if no name contains a line end.
    return _NAMES(joined) is not None and joined.count("\n") == len(texts)


def _read_by_contract(delivery: Delivery) -> _Columns:
    try:
        batch = ScoreBatch.read(delivery.body)
        times = [_representable(score.at or delivery.envelope.time) for score in batch.scores]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Reject(f"not a score.submitted: {where}: {first['msg']}") from None
    except ValueError as error:
        raise Reject(f"not a score.submitted: {error}") from None
    return (
        tuple(score.board for score in batch.scores),
        tuple(score.player for score in batch.scores),
        np.array([score.score for score in batch.scores]) + 0.0,
        times,
        [score.id for score in batch.scores],
    )


_FIRST = to_micros(datetime.fromisoformat("0001-01-01T00:00:00+00:00"))
_LAST = to_micros(datetime.fromisoformat("9999-12-31T23:59:59.999999+00:00"))


def _representable(time: datetime) -> int:
    micros = to_micros(time)
    if not _FIRST <= micros <= _LAST:
        raise ValueError("`at` lies outside the years 1 to 9999 in UTC")
    return micros
