"""Sentences for the errors of pydantic, for clients that do not know pydantic.

The field is named beside the sentence, so a sentence has no subject: "must be a string". The errors of our own
validators are such sentences already.
"""

import re
from collections.abc import Mapping
from typing import Any

_STRING = "must be a string"
_INTEGER = "must be an integer"
_NUMBER = "must be a number"
_BOOLEAN = "must be true or false"
_ARRAY = "must be an array"
_OBJECT = "must be an object"
_TIME = "must be a time like 2026-01-31T12:00:00Z"
_DATE = "must be a date like 2026-01-31"
_UUID = "must be a UUID"

_SENTENCES = {
    "missing": "is required",
    "extra_forbidden": "is not known here; leave it out, or correct its name",
    "none_required": "must be null",
    "string_type": _STRING,
    "string_unicode": "must be text in UTF-8",
    "bytes_type": _STRING,
    "int_type": _INTEGER,
    "int_parsing": _INTEGER,
    "int_from_float": _INTEGER,
    "int_parsing_size": "is too large for an integer",
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_type": _BOOLEAN,
    "bool_parsing": _BOOLEAN,
    "list_type": _ARRAY,
    "tuple_type": _ARRAY,
    "set_type": _ARRAY,
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "dict_attributes_type": _OBJECT,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "timezone_aware": "must have an offset from UTC, like Z or +01:00",
    "date_type": _DATE,
    "date_parsing": _DATE,
    "date_from_datetime_parsing": _DATE,
    "date_from_datetime_inexact": _DATE,
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
    "json_invalid": "must be JSON",
    "json_type": "must be JSON",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "union_tag_invalid": "must be one of {expected_tags} in {discriminator}",
    "union_tag_not_found": "must have {discriminator}",
    "string_pattern_mismatch": "has characters, or an order of them, that are not allowed here",
}


def sentence(error: Mapping[str, Any]) -> str:
    """Return the sentence for one error of pydantic; an error without a type already has one."""
    type_, message, context = error.get("type"), str(error["msg"]), error.get("ctx", {})
    match type_:
        case "too_short" | "string_too_short":
            return _length("at least", context["min_length"], _unit(type_, context))
        case "too_long" | "string_too_long":
            return _length("at most", context["max_length"], _unit(type_, context))
    if (words := _SENTENCES.get(str(type_))) is not None:
        return words.format_map(context)
    # pydantic puts "Value error, …" or "Assertion failed, …" before the sentence of our own validator.
    words = re.sub(r"^(Value error|Assertion failed), ", "", message)
    return re.sub(r"^\w+ should ", "must ", words)


def _unit(type_: str, context: Mapping[str, Any]) -> str:
    # The field type is "Value" for a string that our own validator returned.
    return "character" if type_.startswith("string") or context.get("field_type") == "Value" else "item"


def _length(bound: str, number: int, unit: str) -> str:
    if bound == "at least" and number == 1:
        return "must not be empty"
    return f"must have {bound} {number} {unit}{'' if number == 1 else 's'}"
