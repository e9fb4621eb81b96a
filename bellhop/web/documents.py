"""Parts of OpenAPI documents for headers that a route reads itself."""

from typing import Any


def header(name: str, description: str) -> dict[str, Any]:
    """Return the parameter object of an optional request header."""
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}
