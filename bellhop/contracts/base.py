"""Base model of all contracts, and field types that refuse values which a database or a client cannot hold."""

import random
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

MAX_DEPTH = 32
INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
"""The largest value of a 64-bit integer column."""


class Contract(BaseModel):
    """An immutable model that refuses unknown fields and does not convert types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def read(cls, body: bytes | str) -> Self:
        """Decode a message. Unlike a request it may have unknown fields: a newer version may have written it.

        Raises:
            ValidationError: it breaks the contract, or is not JSON.
        """
        return cls.model_validate_json(body, extra="ignore")


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a fresh id: a UUID of version 7 (RFC 9562), so that ids sort by the time they were made."""
    # The 74 random bits need to be unique, not secret, so no cryptographic random source is needed.
    bits = random.getrandbits(74)
    digits = f"{time.time_ns() // 1_000_000:012x}{0x7000 | bits >> 62:04x}{0x8 << 60 | bits & (1 << 62) - 1:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def derived_id(*parts: str) -> str:
    """Return an id that depends only on `parts`, so that a repeated operation gives the same id."""
    return str(uuid.uuid5(_DERIVED, "\x00".join(parts)))


_DERIVED = uuid.UUID("6a1f4f53-6a04-4b0e-9a0e-bc1e3b0f2d11")


NUL = "must not contain NUL (U+0000)"


def no_nul(text: str) -> str:
    """Refuse NUL (PostgreSQL and mail cannot hold it) and lone surrogates (UTF-8 cannot)."""
    if "\x00" in text:
        raise ValueError(NUL)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain a lone surrogate (U+D800 to U+DFFF)") from None
    return text


def one_line(text: str) -> str:
    """Refuse every control character and line separator: the text becomes a header."""
    if (found := _NOT_ONE_LINE.search(text)) is not None:
        raise ValueError(f"must be one line without control characters, found U+{ord(found[0]):04X}")
    return no_nul(text)


_NOT_ONE_LINE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


def storable(value: Any, depth: int = 1) -> Any:
    """Refuse free JSON that some store or client could not hold: nesting, huge integers, NUL, surrogates."""
    if depth > MAX_DEPTH:
        raise ValueError(f"must not nest deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        no_nul(value)
    elif isinstance(value, int) and not -INT64_MAX - 1 <= value <= INT64_MAX:
        raise ValueError("must not hold an integer beyond 64 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            no_nul(key)
            storable(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            storable(item, depth + 1)
    return value


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """The error for an invalid value, instead of one error for each rule of the type.

    A validator in Python would cost more than the rules, which pydantic checks in Rust.
    """

    sentence: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="says", custom_error_message=self.sentence
        )


EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 30, tzinfo=UTC)
"""A time within these bounds can be converted to any offset from UTC, and rounded to any unit, without overflow."""
MAX_AHEAD = timedelta(days=3653)
"""Ten years: how far ahead work can be scheduled."""


class _Rfc3339:
    """Accepts RFC 3339 text within the bounds, or a `datetime` of our own code.

    Numbers are refused: they could be seconds or milliseconds. The checks run inside pydantic's core, because one
    request may have 1,000 times.
    """

    _PATTERN = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$"

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        time = core_schema.datetime_schema(strict=False, tz_constraint="aware", ge=EARLIEST, le=LATEST)
        text = core_schema.chain_schema([core_schema.str_schema(pattern=self._PATTERN, strict=True), time])
        made = core_schema.chain_schema([core_schema.is_instance_schema(datetime), time])
        return core_schema.custom_error_schema(
            core_schema.union_schema([text, made], mode="left_to_right"),
            custom_error_type="time",
            custom_error_message="must be a time with its offset from UTC, like 2026-11-25T18:40:00Z (RFC 3339),"
            ' between 1970-01-01 and 9999-12-30; for "never" leave it out',
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"type": "string", "format": "date-time"}


def _not_too_far(time: datetime) -> datetime:
    if time - now() > MAX_AHEAD:
        raise ValueError("must be at most 10 years ahead")
    return time


Time = Annotated[datetime, _Rfc3339()]
"""A time that a client sends."""
DueTime = Annotated[Time, AfterValidator(_not_too_far)]
"""The time at which work is due."""
# Strict mode refuses a string for a datetime; JSON has no other way to write one.
MessageTime = Annotated[AwareDatetime, Field(strict=False)]
"""A time that one of our services wrote. It is not bounded: a row stored before the bounds must not stop its reader."""
Text = Annotated[str, AfterValidator(no_nul)]
Line = Annotated[str, AfterValidator(one_line), StringConstraints(min_length=1, max_length=998)]
Data = Annotated[dict[str, JsonValue], AfterValidator(storable)]
AnyJson = Annotated[JsonValue, AfterValidator(storable)]

# A name that may become a routing key, a channel or a board: no wildcard, no blank, far below AMQP's 255 bytes.
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$"),
    ErrorMessage("must be 1 to 128 ASCII letters, digits and . _ : @ / -, and begin with a letter or a digit"),
]
Id = Annotated[str, AfterValidator(one_line), StringConstraints(min_length=1, max_length=255)]
TaskId = Annotated[str, AfterValidator(one_line), StringConstraints(min_length=1, max_length=36)]
