"""What every contract keeps to."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from bellhop.contracts.base import Contract
from bellhop.contracts.mail import MailTask
from bellhop.contracts.notifications import Notification
from bellhop.contracts.outcomes import Outcome
from bellhop.contracts.scores import ScoreBatch
from bellhop.contracts.tasks import CancelTask

MESSAGES: dict[type[Contract], dict[str, Any]] = {
    MailTask: {"task_id": "1", "owner": "shop", "to": "ada@example.com", "subject": "Hello", "text": "Hello"},
    CancelTask: {"task_id": "1", "round": 1},
    Outcome: {"task_id": "1", "state": "sent", "at": "2026-11-21T12:00:00Z"},
    Notification: {"channels": ["news"], "title": "Hello"},
    ScoreBatch: {"scores": [{"board": "b", "player": "p", "score": 1}]},
}


@pytest.mark.parametrize("contract", MESSAGES)
def test_a_message_of_a_newer_version_is_read(contract: type[Contract]) -> None:
    """Replicas of two versions work side by side while one takes the other's place."""
    fields = MESSAGES[contract]
    assert contract.read(json.dumps(fields | {"of_tomorrow": 1}).encode()) == contract.read(json.dumps(fields).encode())


@pytest.mark.parametrize("contract", MESSAGES)
def test_a_request_with_an_unknown_field_is_refused(contract: type[Contract]) -> None:
    """A client that misspells a field is told, instead of being half obeyed."""
    with pytest.raises(ValidationError, match="of_tomorrow"):
        contract.model_validate_json(json.dumps(MESSAGES[contract] | {"of_tomorrow": 1}))
