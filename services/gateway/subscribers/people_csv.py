"""People from CSV (RFC 4180), as spreadsheets and other newsletters write it.

Commas, semicolons and tabs separate values; the first line may say `sep=;`. UTF-8, UTF-16 and Windows-1252 are read. A
line that cannot be read costs that line, with a reason, and no other.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Iterator

import orjson
from pydantic import JsonValue

MAX_RECORD = 64 * 1024
"""Characters of one record: a quote that is never closed must not swallow the rest of the file."""
MAX_COLUMNS = 100
RECORDS_PER_TURN = 100
"""So many records are read before other requests get their turn: a file of 8 MiB may hold 4 million lines."""

_SEPARATORS = (",", ";", "\t")
_SEP_LINE = re.compile(r"sep=([,;\t|])\n", re.IGNORECASE)
_EMPTY_LINES = re.compile(r"\n*")
_CHARSETS = {
    "utf-8": "utf-8-sig",
    "utf8": "utf-8-sig",
    "us-ascii": "utf-8-sig",
    "utf-16": "utf-16",
    "utf-16le": "utf-16-le",
    "utf-16be": "utf-16-be",
    "iso-8859-1": "cp1252",  # WHATWG's Encoding Standard reads it so, and so do all browsers
    "windows-1252": "cp1252",
    "cp1252": "cp1252",
    "iso-8859-15": "iso-8859-15",
}
_EMAIL_NAMES = ("email", "e-mail", "email address", "e-mail address", "email_address", "e-mail-adresse", "mail")
_NAME_NAMES = ("name", "full name", "full_name", "fullname")


Values = dict[str, JsonValue]
"""The values of a record that are not empty, by the names of the columns."""


class BadCsv(Exception):
    """Nothing of the file can be read; the text says why."""


class _BadLine(Exception):
    """One record cannot be read."""


def decoded(data: bytes, charset: str | None) -> tuple[str, str | None]:
    """Return the text of a file, and a sentence where its charset had to be guessed.

    Args:
        data: the file.
        charset: what the request said; without it, UTF-8 or what the file begins with.

    Raises:
        BadCsv: the charset is not known, or the file is not in it; the text names the line.
    """
    note = None
    if charset is not None:
        codec = _CHARSETS.get(charset.lower())
        if codec is None:
            raise BadCsv(f"the charset {charset[:40]!r} is not known here; there are UTF-8, UTF-16 and Windows-1252")
    elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        codec = "utf-16"
    elif data[1:2] == b"\x00":
        codec = "utf-16-le"
    elif data[:1] == b"\x00":
        codec = "utf-16-be"
    else:
        codec = "utf-8-sig"
        try:
            data.decode(codec)
        except UnicodeDecodeError as error:
            codec = "cp1252"
            note = (
                f"Line {_line(data, error)} is not UTF-8, so the file was read as Windows-1252."
                " Send it with Content-Type: text/csv; charset=windows-1252 to say so, or save it as UTF-8."
            )
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        raise BadCsv(f"line {_line(data, error)}: the file is not {charset or 'UTF-8 or Windows-1252'}") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), note


def _line(data: bytes, error: UnicodeDecodeError) -> int:
    return data.count(b"\n", 0, error.start) + 1


def records(text: str) -> Iterator[tuple[int, Values | str]]:
    """Yield the line number and the values of each record by the names in the first line, lower case; empty ones not.

    Where a record cannot be read there is a sentence in place of its values.

    Raises:
        BadCsv: the first line does not name an `email` column; before anything is yielded.
    """
    position, line = 0, 1
    separator = None
    if (match := _SEP_LINE.match(text)) is not None:
        separator, position, line = match[1], match.end(), 2
    head = _EMPTY_LINES.match(text, position)
    assert head is not None
    position, line = head.end(), line + head.end() - position
    if separator is None:
        first = text[position : position + MAX_RECORD].partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
    unquoted = re.compile(rf"[^{re.escape(separator)}\n]*")
    names: list[str] | None = None
    while position < len(text):
        start, began = position, line
        try:
            values, position = _record(text, start, separator, unquoted)
        except _BadLine as error:
            # The next line may be valid, even if this one is not.
            position = (text.find("\n", start) + 1) or len(text)
            if names is None:
                raise BadCsv(f"line {began}: {error}") from None
            yield began, str(error)
            line += 1
            continue
        line += text.count("\n", start, position)
        if names is None:
            names = _names(values, began)
        else:
            yield began, _by_name(names, values) if any(values) else {}
    if names is None:
        raise BadCsv("the file is empty: its first line must name the columns, one of them email")


async def people(text: str) -> AsyncGenerator[tuple[int, Values | str], None]:
    """Yield the records that say anything, and let other requests have their turn; raises as `records` does."""
    for count, (line, values) in enumerate(records(text), 1):
        if count % RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
        if values:
            yield line, values


def _record(text: str, position: int, separator: str, unquoted: re.Pattern[str]) -> tuple[list[str], int]:
    """Return the stripped values of the record at `position`, and where the next one begins."""
    values = []
    limit = position + MAX_RECORD
    while True:
        if text.startswith('"', position):
            value, position = _quoted(text, position + 1, limit, separator)
        else:
            # A quote within a value that does not begin with one is an inch mark.
            match = unquoted.match(text, position)
            assert match is not None  # it matches nothing, too
            value, position = match[0], match.end()
        if position > limit:
            raise _BadLine(f"is longer than {MAX_RECORD} characters")
        values.append(value.strip())
        if not text.startswith(separator, position):
            return values, position + 1
        position += 1


def _quoted(text: str, position: int, limit: int, separator: str) -> tuple[str, int]:
    pieces = []
    while (end := text.find('"', position, limit)) >= 0:
        pieces.append(text[position:end])
        if not text.startswith('"', end + 1):
            break
        pieces.append('"')
        position = end + 2
    else:
        raise _BadLine("opens a quote that is never closed")
    end += 1
    while text.startswith(" ", end):
        end += 1
    if end < len(text) and text[end] not in (separator, "\n"):
        raise _BadLine("has text behind a closing quote; a quote within quotes is written twice")
    return "".join(pieces), end


def _names(values: list[str], line: int) -> list[str]:
    names = [value.lower() for value in values]
    for wanted, others in (("email", _EMAIL_NAMES), ("name", _NAME_NAMES)):
        found = next((each for each in others if each in names), None)
        if found is not None:
            names[names.index(found)] = wanted
    named = [name for name in names if name]
    if "email" not in named or len(set(named)) != len(named) or len(named) > MAX_COLUMNS:
        raise BadCsv(
            f"line {line}: the first line must name the columns, each once, with commas, semicolons or tabs between"
            f" them, at most {MAX_COLUMNS}, and one of them email; name is the person's name, and every other one is"
            " an attribute"
        )
    return names


def _by_name(names: list[str], values: list[str]) -> Values | str:
    """Return the values that are not empty; spreadsheets leave out empty cells at the end of a row, or add some."""
    if any(values[len(names) :]):
        return f"has {len(values)} values for {len(names)} columns"
    found: Values = {name: value for name, value in zip(names, values, strict=False) if name and value}
    if isinstance(attributes := found.get("attributes"), str) and attributes.startswith("{"):
        # As listmonk exports them: all attributes of a person in one column.
        try:
            found["attributes"] = orjson.loads(attributes)
        except orjson.JSONDecodeError:
            return "attributes: begins like a JSON object and is none"
    return found
