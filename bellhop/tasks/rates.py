"""Rates as people write them in the settings: 20/s, 600/m, 5000/h, 100000/d."""

import re
from typing import Annotated

from pydantic import AfterValidator

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def per_second(text: str) -> float:
    """Return the rate that `text` says, as tasks a second.

    Raises:
        ValueError: `text` is no rate.
    """
    match = _RATE.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"must be a rate like 20/s, 600/m, 5000/h or 100000/d, not {text!r}")
    return float(match[1]) / _SECONDS[match[2]]


def _checked(text: str) -> str:
    per_second(text)
    return text


Rate = Annotated[str, AfterValidator(_checked)]
