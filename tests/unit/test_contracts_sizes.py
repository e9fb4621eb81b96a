"""What is accepted is not too large for what comes after it."""

from typing import Any

from bellhop.contracts.base import MAX_DEPTH
from bellhop.contracts.mail import MAX_HEADERS, MAX_REFERENCES, MailRequest, MailTask
from services.gateway.broadcasts.routes import BroadcastRequest

TASK = {"task_id": "1", "owner": "shop", "to": "ada@example.com"}


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def test_a_broadcast_with_all_headers_makes_a_valid_task() -> None:
    """`List-Id` is added to those of the request."""
    headers = {f"X-{number}": "x" for number in range(MAX_HEADERS)}
    BroadcastRequest.model_validate({"list": "news", "subject": "s", "text": "t", "headers": headers})

    MailTask.model_validate(TASK | {"subject": "s", "text": "t", "headers": {"List-Id": "<news.x>"} | headers})


def test_long_references_lose_their_middle() -> None:
    """A thread of any length can be replied to; the first id and the last ones are kept."""
    ids = [f"<{number:060d}@mail.example.com>" for number in range(200)]
    mail = MailRequest.model_validate(
        {"to": "ada@example.com", "subject": "s", "text": "t", "headers": {"References": " ".join(ids)}}
    )

    kept = mail.headers["References"].split()
    assert (kept[0], kept[1:]) == (ids[0], ids[-len(kept) + 1 :])
    assert MAX_REFERENCES - 100 < len(mail.headers["References"]) <= MAX_REFERENCES


def test_attributes_of_any_accepted_depth_fit_into_the_data_of_a_template() -> None:
    """They stand two levels deeper there than they came in."""
    attributes = _nested(MAX_DEPTH - 1)

    MailTask.model_validate(TASK | {"template": "t", "data": {"subscriber": {"attributes": attributes}}})
