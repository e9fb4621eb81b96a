"""JSON as every store and every reader of ours can hold it: read strictly, or refused with the place that is wrong.

Python's own reader takes NaN, keeps the last of two equal keys, and lets through integers and characters that
PostgreSQL, AMQP and other languages cannot hold; the mistake then shows far from the client that made it.

    400   it cannot be read: not JSON (RFC 8259), not UTF-8, a BOM, nested deeper than 32, a number of 4,300 digits
    422   it is JSON, but says what cannot be kept: NaN, 1e400, an integer beyond 64 bits, one key twice, NUL,
          half of a surrogate pair; or it holds more than 20,000 values
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import orjson

from bellhop.contracts.base import INT64_MAX, MAX_DEPTH, no_nul
from bellhop.web.problems import Problem, pointer

_EXACT_FLOAT = 2.0**63
"""Below it a float came from text with a fraction or exponent; from here on orjson also makes floats of integers."""


MAX_VALUES = 20_000
"""In one text. What follows the reading (validation, copies, the list of what is wrong) costs time for each value and
each byte, and nothing else is served meanwhile: a megabyte of small values would take seconds, this many take 0.1 s."""


def parse(body: bytes) -> Any:
    """Return what the JSON text `body` says; raise Problem 400 or 422 where it is not allowed."""
    try:
        return _parse_fast(body)
    except _Doubt:
        return _parse_carefully(body)


class _Doubt(Exception):
    """The fast reader cannot vouch for this text."""


def _parse_fast(body: bytes) -> Any:
    """Read with orjson, which saves a third of the time, where it is plain that the careful reader would agree.

    orjson keeps the last of equal keys. Without a backslash in the text each `"` is the edge of a string, so when
    writing the value back makes as many of them as there were, no key was lost.
    """
    if b"\\" in body:
        _check_size(body)
        raise _Doubt
    try:
        value = orjson.loads(body)
        _check_size(body, value)
        if orjson.dumps(value).count(b'"') != body.count(b'"'):
            raise _Doubt
        _check((value,), 1, texts=False, float_limit=_EXACT_FLOAT)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, _Refused):
        raise _Doubt from None
    return value


def _check_size(body: bytes, value: Any = None) -> None:
    """Raise Problem 422 if `body`, whose value is `value`, holds too many values."""
    # Every value but the first of its container follows a comma, and every container has its brackets.
    if body.count(b",") + body.count(b"[") + body.count(b"{") < MAX_VALUES:
        return
    if value is None:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return  # the careful reader says why
    count, waiting = 1, [value]
    while waiting:
        container = waiting.pop()
        items = container.values() if isinstance(container, dict) else container
        if not isinstance(container, dict | list):
            continue
        count += len(container)
        if count > MAX_VALUES:
            raise Problem(
                422,
                "Unprocessable Content",
                f"The body holds more than {MAX_VALUES:,} JSON values. Send it in several requests.",
            )
        waiting += [item for item in items if isinstance(item, dict | list)]


def _parse_carefully(body: bytes) -> Any:
    """Read with the standard library and say exactly what is wrong and where."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(f"byte {error.start} is not UTF-8", "Send the text as UTF-8.") from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise _unreadable(f"{place}: {error.msg}", "Send one JSON value, complete and without a BOM.") from None
    except RecursionError:
        raise _unreadable("it nests too deep", f"Nest at most {MAX_DEPTH} levels.") from None
    except ValueError:
        raise _unreadable("a number has too many digits", "Send so long a number as a string.") from None
    try:
        _check((value,), 1, texts=_ESCAPED.search(text) is not None, float_limit=math.inf)
    except _Refused as refused:
        where = pointer(refused.path[::-1][1:])
        if refused.status == 400:
            raise _unreadable(refused.reason, f"Nest at most {MAX_DEPTH} levels.") from None
        raise Problem(
            422,
            "Unprocessable Content",
            f"The body says something that cannot be kept: {where} {refused.reason}.",
            extensions={"errors": [{"pointer": where, "detail": refused.reason}]},
        ) from None
    return value


def _unreadable(what: str, remedy: str) -> Problem:
    return Problem(400, "Bad Request", f"The body could not be read as JSON: {what}. {remedy}")


class _Refused(Exception):
    """A value that is not allowed; `path` grows on the way up, innermost step first."""

    def __init__(self, reason: str, status: int = 422) -> None:
        self.reason = reason
        self.status = status
        self.path: list[int | str] = []


class _Repeated(dict[str, Any]):
    """An object in which some key stood twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else _Repeated(pairs)


_decoder = json.JSONDecoder(object_pairs_hook=_object)
# Only an escape can smuggle in NUL or a surrogate: raw, the first is no JSON and the second no UTF-8.
_ESCAPED = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


def _check(container: Any, depth: int, *, texts: bool, float_limit: float) -> None:
    """Raise `_Refused` for the first value below `container` that is not allowed.

    `container` stands at level `depth - 1`; `texts`: whether strings can be wrong at all.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(container, dict):
        items = container.items()
        if texts:
            for key in container:
                _check_text(key)
    else:
        items = enumerate(container)
    key = None
    try:
        for key, value in items:  # noqa: B007 - the way to a refused value is told on the way up
            kind = type(value)
            if kind is str:
                if texts:
                    _check_text(value)
            elif kind is int:
                if not -INT64_MAX - 1 <= value <= INT64_MAX:
                    raise _Refused("must not be an integer beyond 64 bits; send it as a string")
            elif kind is float:
                # Written so that NaN, which compares as false, is refused.
                if not -float_limit < value < float_limit:
                    raise _Refused("must be a finite number that a double can hold")
            elif kind is dict or kind is list or kind is _Repeated:
                if depth > MAX_DEPTH:
                    raise _Refused("it nests too deep", status=400)
                _check(value, depth + 1, texts=texts, float_limit=float_limit)
                if kind is _Repeated:
                    raise _Refused(f"must not have the key {json.dumps(value.key[:64])} twice")
    except _Refused as refused:
        refused.path.append(key)
        raise


def _check_text(text: str) -> None:
    try:
        no_nul(text)
    except ValueError as error:
        raise _Refused(str(error)) from None
