"""What all contracts share: strictness, and the field types that refuse what no store can hold."""

import os
import time
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

MAX_DEPTH = 32
INT64_MAX = 2**63 - 1


class Contract(BaseModel):
    """A model that takes no unknown field and coerces no type; instances are immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


def new_id() -> str:
    """Return a fresh id: a UUID of version 7 (RFC 9562), so that ids sort by the time they were made."""
    random = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant
    return str(uuid.UUID(int=value))


def derived_id(*parts: str) -> str:
    """Return the id that always follows from `parts`, so that doing a thing again names the same thing."""
    return str(uuid.uuid5(_DERIVED, "\x00".join(parts)))


_DERIVED = uuid.UUID("6a1f4f53-6a04-4b0e-9a0e-bc1e3b0f2d11")


def no_nul(text: str) -> str:
    """Refuse NUL (PostgreSQL and mail cannot hold it) and lone surrogates (UTF-8 cannot)."""
    if "\x00" in text:
        raise ValueError("must not contain NUL (U+0000)")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain a lone surrogate (U+D800 to U+DFFF)") from None
    return text


def one_line(text: str) -> str:
    """Refuse every control character and line separator: the text becomes a header."""
    for character in text:
        if character < " " or character in "\x7f\x85\u2028\u2029":
            raise ValueError(f"must be one line without control characters, found U+{ord(character):04X}")
    return no_nul(text)


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


# Strict mode refuses a string for a datetime; JSON has no other way to write one.
Time = Annotated[AwareDatetime, Field(strict=False)]
Text = Annotated[str, AfterValidator(no_nul)]
Line = Annotated[str, AfterValidator(one_line), StringConstraints(min_length=1, max_length=998)]
Data = Annotated[dict[str, JsonValue], AfterValidator(storable)]
AnyJson = Annotated[JsonValue, AfterValidator(storable)]

# A name that may become a routing key, a channel or a board: no wildcard, no blank, well under AMQP's 255 bytes.
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@/-]*$")]
EventType = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Id = Annotated[str, AfterValidator(one_line), StringConstraints(min_length=1, max_length=255)]
