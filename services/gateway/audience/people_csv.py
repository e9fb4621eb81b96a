"""CSV (RFC 4180) as it arrives, one record at a time: a file of any length takes the memory of its longest record."""

import asyncio
import codecs
import csv
from collections.abc import AsyncGenerator, AsyncIterator

MAX_RECORD = 64 * 1024
MAX_COLUMNS = 100
RECORDS_PER_TURN = 100
"""So many records are read before other tasks get their turn: a file of 8 MiB may hold 4 million lines."""


class BadCsv(Exception):
    """The rest of the file cannot be read; the text names the line."""


async def records(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[int, dict[str, str] | str], None]:
    """Yield the line number and the values of each record by the names in the first line, lower case; empty ones not.

    A record with more or fewer values than names is a sentence instead.

    Raises:
        BadCsv: not UTF-8, a quote that never ends, or a first line without the name `email`.
    """
    names: list[str] | None = None
    count = 0
    async for line, record in _split(chunks):
        count += 1
        if count % RECORDS_PER_TURN == 0:
            await asyncio.sleep(0)
        values = _values(line, record)
        if names is None:
            names = [value.strip().lower() for value in values]
            if "email" not in names or len(set(names)) != len(names) or len(names) > MAX_COLUMNS:
                raise BadCsv(
                    f"line {line}: the first line must name the columns, each once, and one of them email;"
                    " name is the person's name, and every other one becomes an attribute"
                )
        elif len(values) != len(names):
            yield line, f"has {len(values)} values for {len(names)} columns"
        else:
            yield line, {name: value.strip() for name, value in zip(names, values, strict=True) if value.strip()}
    if names is None:
        raise BadCsv("the file is empty: its first line must name the columns, one of them email")


def _values(line: int, record: str) -> list[str]:
    try:
        return next(csv.reader([record], strict=True))
    except csv.Error as error:
        raise BadCsv(f"line {line}: {error}") from None


async def _split(chunks: AsyncIterator[bytes]) -> AsyncGenerator[tuple[int, str], None]:
    """Yield each record with the number of its first line. A line end within quotes belongs to the record."""
    line, pending = 1, ""
    async for text in _decoded(chunks):
        pending += text
        # Of the last line more may be coming.
        *whole, pending = pending.split("\n")
        pieces: list[str] = []
        quoted = False
        for piece in whole:
            pieces.append(piece)
            # Each line is looked at once: a record may have as many lines as characters.
            quoted ^= piece.count('"') % 2 == 1
            if not quoted:
                record = "\n".join(pieces)
                if record.strip():
                    yield line, record.rstrip("\r\n")
                line, pieces = line + len(pieces), []
        pending = "\n".join([*pieces, pending])
        if len(pending) > MAX_RECORD:
            raise BadCsv(f"line {line}: longer than {MAX_RECORD} characters; is a quote missing?")
    if pending.count('"') % 2:
        raise BadCsv(f"line {line}: a quote is opened here and never closed")
    if pending.strip():
        yield line, pending.rstrip("\r\n")


async def _decoded(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        async for chunk in chunks:
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BadCsv(f"the file is not UTF-8: {error.reason}") from None
