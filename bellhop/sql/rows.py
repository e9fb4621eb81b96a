"""Rows of tables as dataclasses."""

from dataclasses import fields
from typing import Any

import sqlalchemy as sa


def columns_of(table: sa.Table, row: type[Any]) -> list[sa.Column[Any]]:
    """Return the columns that the fields of the dataclass `row` name, in their order: `row(*found)` reads one."""
    return [table.c[field.name] for field in fields(row)]
