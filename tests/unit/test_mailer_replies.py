"""What an SMTP reply means."""

import pytest

from services.mailer.replies import Cause, Kind, classify, lost


@pytest.mark.parametrize(
    ("code", "text", "kind", "cause"),
    [
        (250, "2.0.0 OK queued as 1A", Kind.SENT, Cause.OTHER),
        (251, "user not local; will forward", Kind.SENT, Cause.OTHER),
        (550, "5.1.1 no such user", Kind.PERMANENT, Cause.BAD_ADDRESS),
        (550, "no such user", Kind.PERMANENT, Cause.OTHER),
        (553, "mailbox name not allowed", Kind.PERMANENT, Cause.BAD_ADDRESS),
        (450, "4.1.2 domain not found at the moment", Kind.TRANSIENT, Cause.BAD_ADDRESS),
        (550, "5.1.8 sender's domain does not exist", Kind.PERMANENT, Cause.OTHER),
        (554, "5.7.1 rejected by policy", Kind.PERMANENT, Cause.POLICY),
        (550, "5.7.26 unauthenticated mail", Kind.PERMANENT, Cause.POLICY),
        (552, "5.2.2 mailbox full", Kind.TRANSIENT, Cause.MAILBOX_FULL),
        (452, "4.2.2 over quota", Kind.TRANSIENT, Cause.MAILBOX_FULL),
        (451, "4.7.1 greylisted", Kind.TRANSIENT, Cause.GREYLISTED),
        (450, "Greylisting in effect, come back", Kind.TRANSIENT, Cause.GREYLISTED),
        (421, "4.3.2 shutting down", Kind.TRANSIENT, Cause.THROTTLED),
        (454, "4.7.0 Throttling failure", Kind.TRANSIENT, Cause.THROTTLED),
        (421, "4.7.28 unusual rate of mail", Kind.TRANSIENT, Cause.THROTTLED),
        (451, "4.7.500 Server busy, too many requests", Kind.TRANSIENT, Cause.THROTTLED),
        (450, "4.2.1 the user gets mail at a rate that", Kind.TRANSIENT, Cause.BAD_ADDRESS),
        (452, "too many recipients", Kind.TRANSIENT, Cause.THROTTLED),
        (552, "5.3.4 message too big", Kind.PERMANENT, Cause.CONTENT),
        (550, "4.2.1 mailbox disabled for now", Kind.TRANSIENT, Cause.BAD_ADDRESS),
        (550, "2.0.0 contradicts itself", Kind.PERMANENT, Cause.OTHER),
        (530, "5.7.0 Authentication required", Kind.TRANSIENT, Cause.RELAY),
        (354, "go on", Kind.TRANSIENT, Cause.OTHER),
        (999, "what", Kind.TRANSIENT, Cause.OTHER),
    ],
)
def test_enhanced_code_decides_before_reply_code(code: int, text: str, kind: Kind, cause: Cause) -> None:
    """The enhanced code (RFC 3463) is read first, then the reply code (RFC 5321)."""
    verdict = classify(code, text)
    assert (verdict.kind, verdict.cause) == (kind, cause)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4.3.2 try again in 120 seconds", 120),
        ("4.3.2 please retry after 7 minutes", 420),
        ("4.3.2 wait 2h", 7200),
        ("4.3.2 in 9999 hours", 86_400),
        ("4.7.1 greylisted, try again in 60 seconds", 300),
        ("4.7.1 greylisted", 300),
        ("4.7.1 Greylisted, try again in 00:12:30", 750),
        ("4.3.2 busy", None),
        ("4.3.2 too many connections in the last hour", None),
    ],
)
def test_the_server_says_when_to_come_back(text: str, seconds: float | None) -> None:
    """A stated delay is honoured, within a day; greylisting means five minutes at least."""
    assert classify(451, text).after == seconds


def test_a_full_mailbox_is_tried_a_few_times_only() -> None:
    """Somebody may empty it, but not within minutes, and not after days."""
    verdict = classify(552, "5.2.2 mailbox full")
    assert verdict.attempts == 4
    assert verdict.after == 3600


def test_552_to_a_recipient_means_later() -> None:
    """Old servers say 552 for too many recipients (RFC 5321, 4.5.3.1.10); for a body it is final."""
    assert classify(552, "too many", recipient_refused=True).kind is Kind.TRANSIENT
    assert classify(552, "too much").kind is Kind.PERMANENT


def test_an_enhanced_code_is_read_from_the_first_line_of_many() -> None:
    """The lines of a reply become one sentence."""
    verdict = classify(550, "5.1.1 no such user\n5.1.1 look at our page")
    assert verdict.enhanced == "5.1.1"
    assert verdict.sentence == "5.1.1 no such user 5.1.1 look at our page"


def test_silence_after_the_dot_is_uncertain() -> None:
    """RFC 1047: the server may have taken the mail."""
    assert lost("silent", after_dot=True).uncertain
    assert not lost("silent", after_dot=False).uncertain


@pytest.mark.parametrize("text", ["5.7.1 not allowed to send as", "5.7.26 unauthenticated", "5.1.8 bad sender domain"])
def test_a_refusal_of_the_sender_is_about_the_relay(text: str) -> None:
    """What is said to MAIL, before any recipient was named, is no recipient's fault: another relay may do."""
    verdict = classify(550, text, sender_refused=True)
    assert (verdict.kind, verdict.cause, verdict.elsewhere) == (Kind.TRANSIENT, Cause.RELAY, True)


def test_only_what_is_certainly_not_out_may_go_elsewhere() -> None:
    """A connection lost before the final dot may fail over; one lost after it never does."""
    assert lost("gone", after_dot=False).elsewhere
    assert not lost("gone", after_dot=True).elsewhere
