"""The newsletter's pure parts: words for many, links, CSV as it arrives, addresses, bounces."""

import time

import pytest

from bellhop.contracts.base import now
from bellhop.contracts.mail import MAX_BODY
from bellhop.contracts.outcomes import Outcome, State
from services.gateway.broadcasts.dispatcher import DispatchRate
from services.gateway.broadcasts.merge_fields import MergedMail, MergeFieldError
from services.gateway.public_pages.links import LinkKind, Links
from services.gateway.subscribers.addresses import subscriber_id
from services.gateway.suppressions.store import is_hard_bounce

ADA = {
    "email": "ada@example.com",
    "name": "Ada <3",
    "attributes": {"city": "London", "born": {"year": 1815}},
    "unsubscribe_url": "https://news.example/unsubscribe?token=t",
}


def test_places_are_filled_and_html_is_escaped() -> None:
    """Name, address, attributes of any depth and defaults; HTML gets them escaped, text and subject as they are."""
    words = MergedMail(
        {
            "subject": "Hello {{ subscriber.name }}",
            "text": "{{subscriber.attributes.city}}, {{ data.subscriber.attributes.born.year }},"
            ' {{ subscriber.attributes.pet | default("no pet") }} {{ subscriber.unsubscribe_url }}',
            "html": "<p>{{ subscriber.name }}</p>{{ subscriber.unsubscribe_url }}",
        }
    )

    assert words.fill(ADA) == {
        "subject": "Hello Ada <3",
        "text": "London, 1815, no pet https://news.example/unsubscribe?token=t",
        "html": "<p>Ada &lt;3</p>https://news.example/unsubscribe?token=t",
    }


def test_every_mail_has_a_way_out() -> None:
    """Bodies that do not place the link to unsubscribe get it at their end."""
    filled = MergedMail({"subject": "S", "text": "News.", "html": "<body>News.</body>"}).fill(ADA)

    assert filled["text"].endswith("Unsubscribe: https://news.example/unsubscribe?token=t\n")
    assert '<a href="https://news.example/unsubscribe?token=t">Unsubscribe</a></p>\n</body>' in filled["html"]


@pytest.mark.parametrize(
    "html",
    ["<p>subscriber.unsubscribe_url</p>", "<!-- {{ subscriber.unsubscribe_url }} --><p>News.</p>", "<p>N</p><!-- <!--"],
)
def test_a_link_that_nobody_sees_is_no_link(html: str) -> None:
    """The words alone, or a place within a comment, get the footer all the same."""
    assert ">Unsubscribe</a>" in MergedMail({"subject": "S", "html": html}).fill(ADA)["html"]


def test_a_style_sheet_of_a_minifier_is_plain_text() -> None:
    """`{#` begins a comment in templates, and an id selector in a media query."""
    html = "<style>@media (max-width:480px){#hero{width:100%}}</style>{{ subscriber.unsubscribe_url }}"

    assert "{#hero{width:100%}}" in MergedMail({"subject": "S", "html": html}).fill(ADA)["html"]


def test_a_body_that_is_too_long_with_its_footer_is_refused_at_acceptance() -> None:
    """And not for each recipient."""
    with pytest.raises(MergeFieldError, match="longer than"):
        MergedMail({"subject": "S", "text": "x" * MAX_BODY})


def test_a_line_end_in_a_name_stays_out_of_the_subject() -> None:
    """Control characters become blanks."""
    words = MergedMail({"subject": "Hi {{ subscriber.attributes.nick }}", "text": "x"})

    assert words.fill(ADA | {"attributes": {"nick": "a\r\nBcc: eve@example.com"}})["subject"] == (
        "Hi a Bcc: eve@example.com"
    )


@pytest.mark.parametrize(
    "text",
    ["{{ subscriber.password }}", "{% for i in x %}", "{{ 7 * 7 }}", "{{ subscriber.name", "{{ data.issue }}"],
)
def test_what_is_no_place_is_refused_with_its_line(text: str) -> None:
    """The sentence names the line."""
    with pytest.raises(MergeFieldError, match=r"text, line 2: .* cannot be filled in"):
        MergedMail({"subject": "S", "text": f"first\n{text}"})


def test_a_missing_attribute_names_the_line() -> None:
    """Without a default nothing is left empty in somebody's mail."""
    words = MergedMail({"subject": "S", "text": "a\nb {{ subscriber.attributes.pet }}"})

    with pytest.raises(MergeFieldError, match=r"text, line 2: this subscriber has no attributes\.pet"):
        words.fill(ADA)


LINKS = Links(["k" * 40], "https://news.example/sub/")


def token(url: str) -> str:
    return url.partition("?token=")[2]


def test_a_link_says_what_it_is_for() -> None:
    """Reading gives back the person and the lists, and no address stands in it."""
    person = subscriber_id("ada@example.com")
    url = LINKS.confirm(person, ["news", "books"], seconds=60)

    assert url.startswith("https://news.example/sub/confirm?token=")
    claim = LINKS.read(LinkKind.CONFIRM, token(url))
    assert claim is not None
    assert (claim.subscriber_id, claim.lists) == (person, ("news", "books"))


def test_a_link_is_for_one_thing_for_a_time_and_ours() -> None:
    """Another kind, an expired one, a changed character, another key, garbage: all are nothing."""
    person = subscriber_id("ada@example.com")
    good = token(LINKS.unsubscribe(person, "news"))
    expired = token(LINKS.confirm(person, ["news"], seconds=-1))
    foreign = token(Links(["z" * 40], "https://news.example").unsubscribe(person, "news"))

    assert LINKS.read(LinkKind.UNSUBSCRIBE, good) is not None
    assert LINKS.read(LinkKind.CONFIRM, good) is None
    assert LINKS.read(LinkKind.CONFIRM, expired) is None
    changed = [good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :] for at in range(len(good) - 1)]
    assert [
        each for each in (*changed, foreign, "", "=", "é", "A" * 9999) if LINKS.read(LinkKind.UNSUBSCRIBE, each)
    ] == []


BOUNCES: list[tuple[dict[str, object], bool]] = [
    ({"code": 550, "enhanced": "5.1.1"}, True),
    ({"code": 556, "enhanced": "5.1.10"}, True),
    ({"code": 550, "enhanced": "5.2.1"}, True),
    ({"code": 553}, False),
    ({"code": 553, "cause": "bad-address"}, False),
    ({"code": 550, "enhanced": "5.1.0", "cause": "bad-address"}, False),
    ({"code": 550, "enhanced": "5.1.20"}, False),
    ({"code": 550}, False),
    ({"code": 550, "enhanced": "5.7.1"}, False),
    ({"code": 550, "enhanced": "5.7.26"}, False),
    ({"code": 550, "enhanced": "5.1.8"}, False),
    ({"code": 552, "enhanced": "5.2.2"}, False),
    ({"code": 450, "enhanced": "4.1.1", "state": State.RETRYING}, False),
    ({"code": 550, "enhanced": "5.1.1", "cause": "policy"}, False),
    ({"code": 550, "cause": "bad-address"}, True),
    ({"code": 400, "cause": "bad-address"}, True),
    # The last of many attempts: it was never said that the address is bad for good.
    ({"code": 450, "enhanced": "4.1.1", "cause": "bad-address"}, False),
    ({"code": 550, "enhanced": "4.2.1", "cause": "bad-address"}, False),
]


@pytest.mark.parametrize(("values", "bounced"), BOUNCES)
def test_only_a_bad_address_is_suppressed(values: dict[str, object], bounced: bool) -> None:
    """A mailbox that does not exist suppresses; policy, content, a full mailbox and anything temporary never do."""
    fields = {"task_id": "t", "state": State.FAILED, "at": now()} | values

    assert is_hard_bounce(Outcome.model_validate(fields)) is bounced


def test_the_rate_is_that_of_the_last_seconds() -> None:
    """Old samples are forgotten, and a retry of what failed begins anew."""
    meter = DispatchRate()
    began = time.monotonic()
    for second in range(60):
        meter.note(100 * second if second < 30 else 3000 + 10 * (second - 30), began + second)

    assert meter.rate == pytest.approx(10)
    meter.note(5, began + 60)
    assert meter.rate == 0


def test_a_place_is_named_by_its_line() -> None:
    """Lines are counted through the places before, also where one holds a line end itself."""
    text = "1\n{{ subscriber.name }}\n3 {{\nsubscriber.name }} {{ subscriber.name }}\n{{ nothing }}"

    with pytest.raises(MergeFieldError, match="text, line 5: "):
        MergedMail({"subject": "S", "text": text})


def test_a_text_has_a_limited_number_of_places() -> None:
    """Each place costs time for every recipient, so 1,000 are enough for one text."""
    MergedMail({"subject": "S", "text": "{{ subscriber.name }}" * 999})

    with pytest.raises(MergeFieldError, match="line 1001: more than 1000 fields"):
        MergedMail({"subject": "S", "text": "{{ subscriber.name }}\n" * 1002})
