"""Requests and answers about subscribers and suppressed addresses."""

from datetime import datetime
from typing import Annotated, NotRequired

from pydantic import Field, JsonValue, StringConstraints
from typing_extensions import TypedDict

from bellhop.contracts.addresses import CanonicalAddress
from bellhop.contracts.answers import Timestamp
from bellhop.contracts.base import Contract, Data, Line, Time
from bellhop.contracts.mail import PersonName
from services.gateway.broadcasts.schemas import ListName
from services.gateway.subscribers.store import Status

Lists = Annotated[list[ListName], Field(min_length=1, max_length=20)]


class SubscriberRequest(Contract):
    """`POST /v1/subscribers`, and one record of an import."""

    email: CanonicalAddress
    lists: Lists
    name: PersonName | None = None
    attributes: Data | None = None
    confirmed: bool = False
    """Their consent is on record elsewhere, so no mail asks for it. People who unsubscribed stay unsubscribed."""


class SuppressionRequest(Contract):
    """`POST /v1/suppressions`."""

    address: CanonicalAddress
    reason: Annotated[Line, StringConstraints(max_length=1000)]
    expires_at: Time | None = None


class SuppressedAmongRequest(Contract):
    """`POST /v1/suppressions/among`."""

    addresses: Annotated[list[Line], Field(max_length=1000)]


class SubscriptionAnswer(TypedDict):
    """One subscription. Empty times are left out."""

    state: Status
    created_at: Timestamp
    asked_at: NotRequired[Timestamp]
    confirmed_at: NotRequired[Timestamp]
    unsubscribed_at: NotRequired[Timestamp]


class SubscriberAnswer(TypedDict):
    """One person."""

    id: str
    email: str
    name: str
    attributes: dict[str, JsonValue]
    state: Status
    lists: Annotated[dict[str, SubscriptionAnswer], Field(description="subscriptions by the name of the list")]
    created_at: Timestamp
    updated_at: Timestamp


class SubscribersAnswer(TypedDict):
    """A page of people."""

    subscribers: list[SubscriberAnswer]
    next: Annotated[str | None, Field(description="the `cursor` of the following page")]


class BadLineAnswer(TypedDict):
    """A rejected line of an import."""

    line: int
    detail: str


class ImportAnswer(TypedDict):
    """The result of an import."""

    new: int
    known: int
    skipped: Annotated[int, Field(description="people who unsubscribed")]
    wrong: int
    errors: Annotated[list[BadLineAnswer], Field(description="the first 100 of the wrong ones")]
    note: NotRequired[Annotated[str, Field(description="says that the charset had to be guessed")]]


class ListsAnswer(TypedDict):
    """All lists."""

    lists: Annotated[dict[str, dict[str, int]], Field(description="numbers of subscriptions by list and state")]


class SuppressedAnswer(TypedDict):
    """An address to suppress."""

    address: str
    reason: str
    source: str
    expires_at: datetime | None


class SuppressionAnswer(TypedDict):
    """One suppressed address."""

    address: str
    reason: str
    source: Annotated[str, Field(description="`bounce`, or the name of the API key that asked for it")]
    created_at: Timestamp
    expires_at: Timestamp | None


class SuppressionsAnswer(TypedDict):
    """A page of suppressed addresses."""

    suppressions: list[SuppressionAnswer]
    next: Annotated[str | None, Field(description="the `cursor` of the following page")]


class SuppressedAmongAnswer(TypedDict):
    """Which of some addresses get no mail."""

    suppressed: Annotated[dict[str, str], Field(description="reasons by address")]
