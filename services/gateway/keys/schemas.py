"""Requests and answers about API keys."""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp
from bellhop.contracts.base import Contract, Name
from bellhop.web.auth import Scope


class KeyRequest(Contract):
    """`POST /v1/keys`. Keys of one name own the same tasks, so that a key can be replaced."""

    name: Name
    scopes: Annotated[list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=len(Scope))]


class NewKeyAnswer(TypedDict):
    """A new key. It is shown this once."""

    id: str
    name: str
    key: str


class KeyAnswer(TypedDict):
    """One key, without its secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: Timestamp
    revoked_at: Timestamp | None


class KeysAnswer(TypedDict):
    """All keys."""

    keys: list[KeyAnswer]
