"""Many rows in few statements.

sqlite3 lets go of the interpreter for every row of an `executemany` and has to get it back from a busy event loop
each time, which costs far more than the row itself. A statement with many rows pays once.
"""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

MAX_VARIABLES = 8000
"""In one statement; SQLite's own limit is 32,766, but longer statements are slower to prepare."""


async def insert_many(connection: AsyncConnection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    """Insert `rows`, which all have the same keys; values must be what the driver takes as they are."""
    if not rows:
        return
    if connection.dialect.name != "sqlite":
        await connection.execute(sa.insert(table), rows)
        return
    columns = tuple(rows[0])
    size = MAX_VARIABLES // len(columns)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        values = tuple(row[column] for row in part for column in columns)
        await connection.exec_driver_sql(_insert(table.name, columns, len(part)), values)


@lru_cache(1000)
def _insert(table: str, columns: tuple[str, ...], size: int) -> str:
    names = ", ".join(f'"{column}"' for column in columns)
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table} ({names}) VALUES {', '.join([row] * size)}"  # noqa: S608 - our own names
