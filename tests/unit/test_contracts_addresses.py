"""Addresses: what one route takes every route takes, and one mailbox has one spelling."""

from typing import Any

import pytest
from pydantic import ValidationError

from bellhop.contracts.addresses import address, canonical, domain_of, mailbox_of, wire
from bellhop.contracts.mail import MailRequest
from services.gateway.public_pages.routes import _EMAIL
from services.gateway.subscribers.routes import SubscriberRequest, SuppressionRequest

TAKEN = [
    "ada@example.com",
    "Ada.Lovelace+news@Example.COM",
    "a/b@example.com",
    "o'hara!#$%&*=?^_`{|}~-@example.com",
    "jürgen@example.com",
    "用户@例え.jp",
    "ada@bücher.example",
    "ada@a_b.example.com",
    "ada@foo.local",
    "ada@localhost",
    f"{'a' * 64}@example.com",
]
REFUSED = [
    "",
    "ada",
    "ada@",
    "@example.com",
    "ada@example",
    "ada..b@example.com",
    ".ada@example.com",
    "ada.@example.com",
    "ada@b@example.com",
    '"ada b"@example.com',
    "Ada <ada@example.com>",
    "ada@[192.0.2.1]",
    "ada@192.0.2.1",
    "ada@-x-.com",
    "ada@xn--bücher.example",
    "ada@\u200bexample.com",
    "ada @example.com",
    "ada@example.com\r\nBcc: eve@example.com",
    f"{'a' * 65}@example.com",
    f"ada@{'ü.' * 130}example",
]


def _mail(email: str) -> Any:
    return MailRequest.model_validate({"to": email, "subject": "s", "text": "t"})


def _reply(email: str) -> Any:
    return MailRequest.model_validate({"to": "ada@example.com", "reply_to": email, "subject": "s", "text": "t"})


def _suppression(email: str) -> Any:
    return SuppressionRequest.model_validate({"address": email, "reason": "asked"})


def _subscriber(email: str) -> Any:
    return SubscriberRequest.model_validate({"email": email, "lists": ["news"]})


ROUTES = [_mail, _reply, _suppression, _subscriber, _EMAIL.validate_python]


@pytest.mark.parametrize("take", ROUTES)
@pytest.mark.parametrize("email", TAKEN)
def test_every_route_takes_it(email: str, take: Any) -> None:
    """So whoever can be mailed can be suppressed, subscribed and forgotten."""
    take(email)


@pytest.mark.parametrize("take", ROUTES)
@pytest.mark.parametrize("email", REFUSED)
def test_every_route_refuses_it(email: str, take: Any) -> None:
    """Before anything is sent."""
    with pytest.raises(ValidationError):
        take(email)


@pytest.mark.parametrize("email", [*TAKEN, *REFUSED, "a@" + "." * 300, "ü@" + "é" * 300])
def test_the_canonical_form_is_its_own(email: str) -> None:
    """Looking anything up by it never fails, and twice is as once."""
    assert canonical(canonical(email)) == canonical(email)
    assert email not in TAKEN or address(canonical(email))


def test_one_person_has_one_address() -> None:
    """Case, Unicode form and the spelling of an international domain make no difference."""
    assert canonical("Ada@BÜCHER.example") == canonical("ada@xn--bcher-kva.example") == "ada@xn--bcher-kva.example"
    assert canonical("ju\u0308rgen@example.com") == canonical("JÜRGEN@example.com")


def test_the_wire_has_the_domain_of_dns() -> None:
    """The local part stays as it was spelt."""
    assert wire("Jürgen@BÜCHER.example") == "Jürgen@xn--bcher-kva.example"
    assert (domain_of("a@BÜCHER.example"), domain_of("a@Example.COM")) == ("xn--bcher-kva.example", "example.com")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("target+0@example.com", "Target@example.com", True),
        ("t.a.r.g.e.t+x@gmail.com", "target@googlemail.com", True),
        ("t.arget@example.com", "target@example.com", False),
        ("ada@bücher.example", "ada+1@xn--bcher-kva.example", True),
        ("+only@example.com", "+only@example.com", True),
    ],
)
def test_limits_count_mailboxes(one: str, other: str, same: bool) -> None:
    """Tags, and dots where the provider ignores them, are one mailbox."""
    assert (mailbox_of(one) == mailbox_of(other)) is same
