"""Requests and answers about broadcasts."""

from typing import Annotated, NotRequired

from pydantic import Field, StringConstraints
from typing_extensions import TypedDict

from bellhop.contracts.answers import Timestamp
from bellhop.contracts.base import DueTime, ErrorMessage
from bellhop.contracts.mail import MailContent
from services.gateway.broadcasts.store import Phase

ListName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    ErrorMessage("must be the name of a list: 1 to 64 ASCII letters, digits and . _ -, the first a letter or a digit"),
]


class BroadcastRequest(MailContent):
    """`POST /v1/broadcasts`. Subject and bodies may have merge fields like `{{ subscriber.name }}` (`merge_fields.py`).

    A template gets the same values as `data.subscriber`, in addition to `data`.
    """

    list: ListName
    send_at: DueTime | None = None
    allow_empty: bool = False
    """Accept it also if the list has no confirmed subscriber now; those who are confirmed when it begins are mailed."""


class BroadcastStateAnswer(TypedDict):
    """The state of one broadcast."""

    id: str
    state: Phase


class BroadcastAnswer(TypedDict):
    """One broadcast. Empty fields are left out."""

    id: str
    list: str
    subject: NotRequired[str]
    template: NotRequired[str]
    state: Phase
    recipients: int
    created_at: Timestamp
    send_at: NotRequired[Timestamp]
    started_at: NotRequired[Timestamp]
    finished_at: NotRequired[Timestamp]


class BroadcastsAnswer(TypedDict):
    """A page of broadcasts."""

    broadcasts: list[BroadcastAnswer]
    next: Annotated[str | None, Field(description="the `cursor` of the following page")]


class ProgressAnswer(BroadcastAnswer):
    """How far a broadcast is."""

    counts: Annotated[
        dict[str, int], Field(description="recipients by the state of their task; `waiting`: those without one")
    ]
    rate_per_second: NotRequired[float]
    eta_seconds: NotRequired[float]
    done_at: NotRequired[Timestamp]
