"""Cursors: they carry the sort key, and only the list that gave one takes it."""

import base64

import pytest

from bellhop.web.cursors import Cursor
from bellhop.web.problems import Problem

TASKS = Cursor("tasks", int, str)


def test_a_cursor_carries_the_sort_key() -> None:
    """Whatever text there is in it, and in characters that need no escape in a URL."""
    text = TASKS.write(1_700_000_000_000, "jürgen/ä@example.com")

    assert TASKS.read(text) == (1_700_000_000_000, "jürgen/ä@example.com")
    assert text.replace("-", "").replace("_", "").isalnum()


def _packed(json: str) -> str:
    return base64.urlsafe_b64encode(json.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "zzz",
        "é",
        "0198-4711",
        Cursor("broadcasts", int, str).write(1, "a"),
        Cursor("tasks", str).write("a"),
        Cursor("tasks", str, int).write("a", 1),
        _packed('[2,"tasks",1,"a"]'),
        _packed('[1,"tasks",9223372036854775808,"a"]'),
        _packed('[1,"tasks",true,"a"]'),
        _packed('[1,"tasks",1,"a\\u0000"]'),
        _packed('{"tasks":1}'),
    ],
)
def test_another_cursor_is_refused(text: str) -> None:
    """422 names the parameter; the first page in its place would look like the following one."""
    with pytest.raises(Problem) as refused:
        TASKS.read(text)

    assert refused.value.status == 422
    assert refused.value.extensions["errors"][0]["pointer"] == "query:cursor"
