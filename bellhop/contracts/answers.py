"""Types that HTTP answers share.

An answer is a `TypedDict`: mypy checks the code that makes it, `/openapi.json` shows it, and serializing it costs no
validation. A field that is left out where there is no value is `NotRequired`; one that may be null says so.
"""

from typing import Annotated

from pydantic import StringConstraints, WithJsonSchema
from typing_extensions import TypedDict

Timestamp = Annotated[
    str,
    StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A time in UTC (RFC 3339)."""


class IdAnswer(TypedDict):
    """What was accepted."""

    id: str
