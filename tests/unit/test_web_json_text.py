"""What the JSON reader takes and refuses."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellhop.web.json_text import MAX_VALUES, _NotDecided, _parse_carefully, _parse_fast, parse
from bellhop.web.problems import Problem

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
)
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=20
)


@given(VALUES, st.booleans())
def test_every_value_that_can_be_kept_is_read_back(value: Any, ascii_only: bool) -> None:
    """What a JSON writer makes of a value is read as that value."""
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


# Pieces that make every kind of failure once they are strung together.
STRUCTURE = ["{", "}", "[", "]", ":", ",", '"', " ", '"a"', '"b"', '"a":', '"a":1']
TEXTS = ["\\", "\\u0000", "\\ud800", '\\"', "\x01", "é", "\ufeff"]
NUMBERS = ["1", "-0", "0.5", "1e30", "1e400", "NaN", "9223372036854775808", "18446744073709551616", "true", "null"]
PIECES = st.lists(st.sampled_from(STRUCTURE + TEXTS + NUMBERS), max_size=12)


@given(PIECES)
def test_the_fast_reader_never_differs_from_the_careful_one(pieces: list[str]) -> None:
    """Whatever the fast reader vouches for, the careful reader reads as the same value of the same type."""
    body = "".join(pieces).encode()
    try:
        fast = _parse_fast(body)
    except _NotDecided:
        return
    assert repr(fast) == repr(_parse_carefully(body))


@given(VALUES)
def test_a_key_that_stands_twice_is_never_lost(value: Any) -> None:
    """An object with a repeated key is refused, whatever its value is."""
    text = json.dumps(value)
    with pytest.raises(Problem) as refused:
        parse(f'{{"first":{text},"key":{text},"key":{text}}}'.encode())
    assert refused.value.status == 422


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


REFUSED = {
    "truncated": (b'{"x":1', 400, "line 1, column"),
    "nothing": (b"", 400, "line 1, column 1"),
    "trailing comma": (b"[1,]", 400, "line 1, column"),
    "two values": (b"1 2", 400, "Extra data"),
    "single quotes": (b"{'a':1}", 400, "line 1, column 2"),
    "raw control character": (b'"\x01"', 400, "control character"),
    "UTF-8 BOM": (b"\xef\xbb\xbf{}", 400, "BOM"),
    "UTF-16": ('{"a":1}'.encode("utf-16"), 400, "UTF-8"),
    "invalid UTF-8": (b'{"a":"\xff"}', 400, "byte 6"),
    "surrogate in UTF-8": (b'"\xed\xa0\x80"', 400, "byte 1"),
    "33 levels": (nested(33), 400, "32 levels"),
    "100,000 levels": (b"[" * 100_000, 400, "32 levels"),
    "33 levels of objects": (b'{"a":' * 33 + b"1" + b"}" * 33, 400, "32 levels"),
    "integer of 5,000 digits": (b"1" * 5000, 400, "too many digits"),
    "NaN": (b'{"x":[NaN]}', 422, "#/x/0"),
    "Infinity": (b'{"x":Infinity}', 422, "#/x"),
    "-Infinity": (b"-Infinity", 422, "finite"),
    "1e400": (b'{"x":1e400}', 422, "#/x"),
    "2^63": (b'{"x":9223372036854775808}', 422, "64 bits"),
    "-2^63 - 1": (b"[-9223372036854775809]", 422, "#/0"),
    "2^64": (b"[18446744073709551616]", 422, "64 bits"),
    "duplicate key": (b'{"a":{"x":1,"x":2}}', 422, '#/a must not have the key "x" twice'),
    "duplicate key by escape": (b'{"x":1,"\\u0078":2}', 422, "twice"),
    "NUL": (b'{"x":"a\\u0000b"}', 422, "#/x must not contain NUL"),
    "NUL in a key": (b'{"o":{"a\\u0000b":1}}', 422, "#/o must not contain NUL"),
    "lone surrogate": (b'["\\ud800"]', 422, "lone surrogate"),
    "reversed surrogates": (b'["\\udc00\\ud800"]', 422, "lone surrogate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_with_its_place(name: str) -> None:
    """Each is answered with its own status, and the detail says where or what it is."""
    body, status, words = REFUSED[name]
    with pytest.raises(Problem) as refused:
        parse(body)
    assert refused.value.status == status
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (nested(32), json.loads(nested(32))),
        (b"9223372036854775807", 2**63 - 1),
        (b"-9223372036854775808", -(2**63)),
        (b"1e30", 1e30),
        (b'"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        (b'"\\\\u0000"', "\\u0000"),
        (b' {"a" : [ ] }\n', {"a": []}),
        (b'{"a":1,"A":2}', {"a": 1, "A": 2}),
    ],
)
def test_the_edge_of_what_is_allowed_is_allowed(body: bytes, value: Any) -> None:
    """One step short of a refusal is read as it stands."""
    assert parse(body) == value


def test_numbers_keep_their_kind() -> None:
    """An integer stays one and a float stays one, so that strict models can tell them apart."""
    one, half, minus = parse(b"[1, 1.0, -0.0]")
    assert (type(one), type(half), math.copysign(1, minus)) == (int, float, -1.0)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * MAX_VALUES + b"0]",
        b'{"text":"\\n","data":[' + b"[]," * MAX_VALUES + b"0]}",
        b"[" + b",".join([b'{"a":{"b":1}}'] * (MAX_VALUES // 2)) + b"]",
    ],
    ids=["flat", "with an escape", "nested"],
)
def test_a_text_of_too_many_values_is_refused(body: bytes) -> None:
    """What is done with a body costs time for each of its values, so their number is limited and not only the bytes."""
    with pytest.raises(Problem, match="more than 20,000 JSON values"):
        parse(body)


def test_commas_in_strings_are_no_values() -> None:
    """A long text is one value, whatever it says."""
    text = ",[{" * MAX_VALUES
    assert parse(json.dumps({"a": text, "b": "\n"}).encode()) == {"a": text, "b": "\n"}
