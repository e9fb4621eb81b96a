"""Whose event it is: on the wire, in the outbox, and in what tells two events apart."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bellhop.amqp.headers import foreign_headers
from bellhop.amqp.message import Delivery, Message, from_headers, to_headers
from bellhop.contracts.envelope import Envelope
from services.gateway.outbox.store import pack, unpack
from services.leaderboard import scores
from services.mailer.reactions import _reaction
from services.notifier.events import key_of

OF_NOBODY = Envelope(type="a.b", source="/s", id="1", time=datetime(2026, 1, 1, tzinfo=UTC))
SHOP, BLOG = replace(OF_NOBODY, owner="shop"), replace(OF_NOBODY, owner="blog")


@pytest.mark.parametrize("envelope", [OF_NOBODY, SHOP])
def test_the_owner_travels_with_the_event(envelope: Envelope) -> None:
    """On the wire and through the outbox it is what it was, and a message without an owner is read as before."""
    message = Message(b"{}", envelope, headers={"x": "y"})
    assert from_headers(to_headers(message)) == envelope
    kept = unpack(pack(message), b"{}")
    assert (kept.envelope, kept.headers) == (envelope, {"x": "y"})


def test_a_gateway_of_the_version_before_takes_the_owner_along() -> None:
    """What it finds among the headers in the outbox it publishes as a header."""
    before = Message(b"{}", OF_NOBODY, headers={"bellhop-owner": "shop"})
    assert from_headers(to_headers(before)) == SHOP


def test_no_attribute_of_a_client_is_taken_for_the_owner() -> None:
    """CloudEvents attributes have a prefix of their own."""
    message = Message(b"{}", replace(SHOP, extensions={"owner": "admin", "bellhopowner": "admin"}))
    assert from_headers(to_headers(message)).owner == "shop"


def test_the_owner_is_no_foreign_header() -> None:
    """A retry takes it from the envelope alone."""
    assert foreign_headers(to_headers(Message(b"{}", SHOP))) == {}


@pytest.mark.parametrize("owner", ["", 7, "a\nb", "x" * 1022])
def test_a_bad_owner_is_refused(owner: object) -> None:
    """Anybody who may publish may have written it."""
    with pytest.raises(ValueError, match=r"owner|one line"):
        from_headers(to_headers(Message(b"{}", OF_NOBODY)) | {"bellhop-owner": owner})


def test_events_of_two_owners_are_two_events() -> None:
    """For the leaderboard, for mails that they set off, and for what browsers are shown; of one owner they are one."""

    def identities(envelope: Envelope) -> tuple[object, ...]:
        body = b'{"scores":[{"board":"b","player":"p","score":1,"at":"2026-01-01T00:00:00+00:00"}]}'
        delivery = Delivery(body, envelope, 1, {}, "leaderboard.scores", "events", "", False)
        task = _reaction(envelope, "order-confirmed", "ada@example.com", {})
        return scores.read([delivery]).messages[0], task.task_id, key_of(envelope)

    for one, two, nobody, again in zip(*map(identities, (SHOP, BLOG, OF_NOBODY, replace(SHOP))), strict=True):
        assert len({one, two, nobody}) == 3
        assert one == again


def test_events_without_an_owner_are_identified_as_in_earlier_versions() -> None:
    """So that a message which comes again after an upgrade is known again."""
    assert OF_NOBODY.identity == ("/s", "1")
    assert _reaction(OF_NOBODY, "t", "ada@example.com", {}).task_id == "7fa80266-43a6-5daf-8adf-feb83b6bfe38"


def test_a_client_resumes_at_a_replica_of_the_version_before() -> None:
    """The part of the key that is in the ids of the stream does not depend on the owner."""
    assert key_of(SHOP)[:4] == key_of(BLOG)[:4] == key_of(OF_NOBODY)[:4]


def test_the_mails_belong_to_the_owner_of_the_event() -> None:
    """An event of an AMQP client has none, so they are `event`'s."""
    assert _reaction(SHOP, "t", "ada@example.com", {}).owner == "shop"
    assert _reaction(OF_NOBODY, "t", "ada@example.com", {}).owner == "event"
