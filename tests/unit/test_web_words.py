"""The words of a 422: for people who know HTTP, and neither pydantic nor regular expressions."""

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, Json, TypeAdapter, ValidationError

from bellhop.contracts.mail import MailRequest
from bellhop.contracts.notifications import Notification
from bellhop.web.problems import Problem, invalid, problem_response
from bellhop.web.sentences import sentence
from services.gateway.broadcasts.routes import BroadcastRequest
from services.gateway.events.cloudevents import _Attributes
from services.gateway.keys.routes import KeyRequest
from services.gateway.subscribers.routes import SubscriberRequest

MAIL = {"to": "ada@example.com", "subject": "s", "text": "t"}
WRONG: list[tuple[Any, dict[str, Any]]] = [
    (MailRequest, MAIL | {"to": "ada"}),
    (MailRequest, MAIL | {"to_name": "x" * 201}),
    (MailRequest, MAIL | {"subject": ""}),
    (MailRequest, MAIL | {"subject": "x" * 999}),
    (MailRequest, MAIL | {"headers": {"X Y": "z"}}),
    (MailRequest, MAIL | {"headers": {"Bcc": "z"}}),
    (MailRequest, MAIL | {"template": "a b"}),
    (MailRequest, MAIL | {"attachments": [{"filename": "a/b", "content_type": "text", "content_base64": "!"}]}),
    (BroadcastRequest, {"list": "a b", "subject": "s", "text": "t"}),
    (Notification, {"channels": ["#"], "title": "x" * 201}),
    (KeyRequest, {"name": "", "scopes": ["all"]}),
    (SubscriberRequest, {"email": "ada@example.com", "lists": ["a,b"], "name": "a\nb"}),
    (_Attributes, {"specversion": "0.3", "id": "", "source": "/s", "type": "a/b"}),
]


@pytest.mark.parametrize(("model", "fields"), WRONG)
def test_a_reason_is_a_sentence_for_people(model: Any, fields: dict[str, Any]) -> None:
    """No prefix of the library, no regular expression, and strings have characters."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(model).validate_python(fields)
    errors = [{**error, "loc": ("body", *error["loc"])} for error in refused.value.errors()]

    for listed in invalid(errors).extensions["errors"]:
        assert not any(word in listed["detail"] for word in ("Value error", "pattern", "after validation", "^")), listed


class _Empty(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _One(BaseModel):
    a: int


class _Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class _Cat(BaseModel):
    kind: Literal["cat"]


class _Dog(BaseModel):
    kind: Literal["dog"]


TABLE: list[tuple[Any, Any, str]] = [
    (_One, {}, "is required"),
    (_Empty, {"a": 1}, "is not known here; leave it out, or correct its name"),
    (str, 1, "must be a string"),
    (bytes, 1, "must be a string"),
    (int, [], "must be an integer"),
    (int, "a", "must be an integer"),
    (int, 1.5, "must be an integer"),
    (int, "1" * 5000, "is too large for an integer"),
    (float, [], "must be a number"),
    (float, "a", "must be a number"),
    (Annotated[float, Field(allow_inf_nan=False)], float("inf"), "must be a finite number"),
    (bool, [], "must be true or false"),
    (bool, "maybe", "must be true or false"),
    (list[int], 1, "must be an array"),
    (tuple[int, ...], 1, "must be an array"),
    (set[int], 1, "must be an array"),
    (dict[str, int], 1, "must be an object"),
    (_One, 1, "must be an object"),
    (None, 1, "must be null"),
    (Annotated[str, Field(min_length=1)], "", "must not be empty"),
    (Annotated[str, Field(min_length=2)], "a", "must have at least 2 characters"),
    (Annotated[str, Field(max_length=1)], "ab", "must have at most 1 character"),
    (Annotated[list[int], Field(min_length=1)], [], "must not be empty"),
    (Annotated[list[int], Field(max_length=2)], [1, 2, 3], "must have at most 2 items"),
    (Annotated[int, Field(gt=0)], 0, "must be greater than 0"),
    (Annotated[int, Field(ge=1)], 0, "must be at least 1"),
    (Annotated[int, Field(lt=2)], 2, "must be less than 2"),
    (Annotated[int, Field(le=1)], 2, "must be at most 1"),
    (Annotated[int, Field(multiple_of=5)], 2, "must be a multiple of 5"),
    (Annotated[str, Field(pattern="^a$")], "b", "has characters, or an order of them, that are not allowed here"),
    (Literal["a", "b"], "c", "must be 'a' or 'b'"),
    (_Color, "green", "must be 'red' or 'blue'"),
    (datetime, [], "must be a time like 2026-01-31T12:00:00Z"),
    (datetime, "noon", "must be a time like 2026-01-31T12:00:00Z"),
    (AwareDatetime, "2026-01-31T12:00:00", "must have an offset from UTC, like Z or +01:00"),
    (date, [], "must be a date like 2026-01-31"),
    (date, "noon", "must be a date like 2026-01-31"),
    (UUID, 1, "must be a UUID"),
    (UUID, "a", "must be a UUID"),
    (Json[int], "{", "must be JSON"),
    (Json[int], 1, "must be JSON"),
    (Annotated[_Cat | _Dog, Field(discriminator="kind")], {"kind": "cow"}, "must be one of 'cat', 'dog' in 'kind'"),
    (Annotated[_Cat | _Dog, Field(discriminator="kind")], {}, "must have 'kind'"),
]


@pytest.mark.parametrize(("type_", "value", "words"), TABLE)
def test_what_pydantic_refuses_is_said_in_our_words(type_: Any, value: Any, words: str) -> None:
    """One row for each kind of error that our models can produce."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(type_).validate_python(value)
    assert [sentence(error) for error in refused.value.errors()] == [words]


def test_a_kind_that_is_not_in_the_table_has_no_words_of_the_library_either() -> None:
    """A later version may have further ones."""
    error = {"type": "unheard_of", "loc": (), "msg": "Input should be a valid frobnicator"}
    assert sentence(error) == "must be a valid frobnicator"


def test_times_in_a_problem_have_the_form_of_all_answers() -> None:
    """Those of the leaderboard come through here where a board is not known."""
    at = datetime.fromisoformat("2026-01-31T12:00:00+00:00")
    assert b'"2026-01-31T12:00:00Z"' in problem_response(Problem(404, "t", "d", extensions={"as_of": at})).body
