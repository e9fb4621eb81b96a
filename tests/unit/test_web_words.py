"""The words of a 422: for people who know HTTP, and neither pydantic nor regular expressions."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bellhop.contracts.mail import MailRequest
from bellhop.contracts.notifications import Notification
from bellhop.web.problems import invalid
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
