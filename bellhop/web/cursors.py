"""Cursors: the start of the next page of a list.

A cursor has the sort key of the last row of the previous page, not a reference to that row: the row may be deleted
before the next page is requested, and the page must begin at the same place nevertheless.
"""

import base64
import binascii
from typing import Annotated, Any

import orjson
from fastapi import Query

from bellhop.contracts.base import INT64_MAX
from bellhop.web.problems import Problem, invalid

_VERSION = 1
_MAX_LENGTH = 2048

CursorText = Annotated[str | None, Query(max_length=_MAX_LENGTH, description="`next` of the page before")]
"""The query parameter `cursor`."""


class Cursor:
    """Encodes and decodes the cursors of one list."""

    def __init__(self, list_: str, *types: type[int] | type[str]) -> None:
        """`list_`: its name, so that the cursor of another list is refused; `types`: of the columns of the sort key."""
        self._list = list_
        self._types = types

    def write(self, *key: int | str) -> str:
        """Return the cursor of the page that begins after `key`."""
        return base64.urlsafe_b64encode(orjson.dumps([_VERSION, self._list, *key])).rstrip(b"=").decode()

    def read(self, text: str) -> tuple[Any, ...]:
        """Return the sort key in a cursor.

        Raises:
            Problem: 422 if it is not a cursor of this list.
        """
        try:
            value = orjson.loads(base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True))
        except (binascii.Error, ValueError):
            raise _unknown() from None
        if not isinstance(value, list) or value[:2] != [_VERSION, self._list]:
            raise _unknown()
        key = value[2:]
        if len(key) != len(self._types) or not all(map(_fits, key, self._types)):
            raise _unknown()
        return tuple(key)


def _fits(value: Any, type_: type[int] | type[str]) -> bool:
    if type(value) is not type_:
        return False
    return "\x00" not in value if isinstance(value, str) else abs(value) <= INT64_MAX


def _unknown() -> Problem:
    msg = "This list did not give such a cursor. Take `next` of the page before, or leave it out to begin."
    return invalid([{"loc": ("query", "cursor"), "msg": msg}])
