"""Write many rows with few statements.

sqlite3 releases the interpreter's lock for every row of an `executemany` and has to reacquire it from a busy event loop
each time, which costs far more than the row itself. A statement with many rows does that once.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_VARIABLES = 8000
"""Variables in one statement; SQLite's own limit is 32,766, but longer statements are slower to prepare."""


async def insert_many(
    connection: AsyncConnection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *, on_conflict: str = ""
) -> None:
    """Insert `rows`, which all have the same keys; values must be of types that the driver accepts unconverted.

    `on_conflict`: the text after ON CONFLICT, whose syntax is the same in both dialects.
    """
    if not rows:
        return
    columns = tuple(rows[0])
    clause = f" ON CONFLICT {on_conflict}" if on_conflict else ""
    if connection.dialect.name != "sqlite":
        values = ", ".join(f":{column}" for column in columns)
        await connection.execute(
            sa.text(f"INSERT INTO {table.name} ({_names(columns)}) VALUES ({values}){clause}"), rows
        )
        return
    for part in _parts(rows, columns):
        await connection.exec_driver_sql(_insert(table.name, columns, len(part)) + clause, _flat(part, columns))


async def update_many(
    connection: AsyncConnection, table: sa.Table, key: str, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Update one row for each of `rows`, which all have the same keys, among them the column `key`; keys are unique."""
    if not rows:
        return
    columns = tuple(rows[0])
    if connection.dialect.name != "sqlite":
        sets = ", ".join(f'"{column}" = :{column}' for column in columns if column != key)
        await connection.execute(sa.text(f'UPDATE {table.name} SET {sets} WHERE "{key}" = :{key}'), rows)
        return
    for part in _parts(rows, columns):
        await connection.exec_driver_sql(_update(table.name, key, columns, len(part)), _flat(part, columns))


def _parts(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> Iterator[Sequence[Mapping[str, Any]]]:
    size = MAX_VARIABLES // len(columns)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _flat(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[column] for row in rows for column in columns)


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(f'"{column}"' for column in columns)


def _values(columns: tuple[str, ...], size: int) -> str:
    return "VALUES " + ", ".join([f"({', '.join('?' * len(columns))})"] * size)


@lru_cache(1000)
def _insert(table: str, columns: tuple[str, ...], size: int) -> str:
    return f"INSERT INTO {table} ({_names(columns)}) {_values(columns, size)}"


@lru_cache(1000)
def _update(table: str, key: str, columns: tuple[str, ...], size: int) -> str:
    sets = ", ".join(f'"{column}" = new."{column}"' for column in columns if column != key)
    return (
        f"WITH new({_names(columns)}) AS ({_values(columns, size)}) "
        f'UPDATE {table} SET {sets} FROM new WHERE {table}."{key}" = new."{key}"'
    )
