"""What an SMTP reply means."""

import pytest

from services.mailer.relays.dialogue import Step
from services.mailer.relays.replies import RULES, Cause, Kind, Rule, classify, lost
from services.mailer.relays.reply_table import parts, steps

SENT, LATER, NEVER = Kind.SENT, Kind.TRANSIENT, Kind.PERMANENT


@pytest.mark.parametrize(
    ("code", "text", "kind", "cause"),
    [
        (250, "2.0.0 OK queued as 1A", SENT, Cause.OTHER),
        (251, "user not local; will forward", SENT, Cause.OTHER),
        (550, "5.1.1 no such user", NEVER, Cause.BAD_ADDRESS),
        (550, "5.1.10 recipient not found", NEVER, Cause.BAD_ADDRESS),
        (550, "5.2.1 mailbox disabled", NEVER, Cause.BAD_ADDRESS),
        (550, "5.1.20 something about addresses", NEVER, Cause.OTHER),
        (550, "5.1.90 your message can't be sent", NEVER, Cause.OTHER),
        (550, "no such user", NEVER, Cause.OTHER),
        (553, "mailbox name not allowed", NEVER, Cause.OTHER),
        (551, "user not local; please try <forward-path>", NEVER, Cause.OTHER),
        (450, "4.1.1 unknown for now", LATER, Cause.BAD_ADDRESS),
        (550, "4.2.1 mailbox disabled for now", LATER, Cause.BAD_ADDRESS),
        (550, "5.1.8 sender's domain does not exist", LATER, Cause.RELAY),
        (554, "5.7.1 rejected by policy", NEVER, Cause.POLICY),
        (550, "5.7.26 unauthenticated mail", NEVER, Cause.POLICY),
        (552, "5.2.2 mailbox full", LATER, Cause.MAILBOX_FULL),
        (452, "4.2.2 over quota", LATER, Cause.MAILBOX_FULL),
        (452, "Mailbox quota exceeded", LATER, Cause.MAILBOX_FULL),
        (451, "4.7.1 greylisted", LATER, Cause.GREYLISTED),
        (450, "Greylisting in effect, come back", LATER, Cause.GREYLISTED),
        (421, "4.3.2 shutting down", LATER, Cause.RELAY),
        (421, "Too many connections", LATER, Cause.THROTTLED),
        (454, "4.7.0 Throttling failure", LATER, Cause.THROTTLED),
        (421, "4.7.28 unusual rate of mail", LATER, Cause.THROTTLED),
        (451, "4.7.500 Server busy, too many requests", LATER, Cause.THROTTLED),
        (450, "4.2.1 the user gets mail at a rate that prevents more", LATER, Cause.THROTTLED),
        (550, "5.2.1 the user gets mail at a rate that prevents more", LATER, Cause.THROTTLED),
        (550, "5.4.5 Daily user sending limit exceeded", LATER, Cause.THROTTLED),
        (553, "recipient limit per session reached", LATER, Cause.THROTTLED),
        (452, "too many recipients", LATER, Cause.THROTTLED),
        (552, "5.3.4 message too big", NEVER, Cause.CONTENT),
        (552, "too much", NEVER, Cause.CONTENT),
        (550, "2.0.0 contradicts itself", NEVER, Cause.OTHER),
        (530, "5.7.0 Authentication required", LATER, Cause.RELAY),
        (553, "sorry, that domain isn't in my list of allowed rcpthosts (#5.7.1)", LATER, Cause.RELAY),
        (551, "relaying denied, authenticate first", LATER, Cause.RELAY),
        (554, "5.7.1 Client host [192.0.2.1] blocked using zen.example", LATER, Cause.RELAY),
        (553, "5.7.1 Sender address rejected: not owned by user bellhop", LATER, Cause.RELAY),
        (354, "go on", LATER, Cause.OTHER),
        (999, "what", LATER, Cause.OTHER),
    ],
)
def test_a_reply_to_the_mail_has_its_meaning(code: int, text: str, kind: Kind, cause: Cause) -> None:
    """The enhanced code (RFC 3463) is read first, then unmistakable words, then the reply code (RFC 5321)."""
    verdict = classify(Step.DOT, code, text)
    assert (verdict.kind, verdict.cause) == (kind, cause)


@pytest.mark.parametrize(
    "reply",
    [
        "550 5.1.0 Sender denied, please authenticate",
        "553 sorry, your envelope sender is in my badmailfrom list (#5.7.1)",
        "550 5.7.1 not allowed to send as",
        "550 5.1.1 no such user",
        "553 5.1.3 bad address syntax",
        "551 user not local",
        "503 5.5.1 nested MAIL command",
        "500 5.5.2 unrecognized, too many errors",
        "502 5.5.1 not implemented",
        "555 5.5.4 Unsupported option: SIZE=100",
        "501 5.1.7 bad sender address syntax",
        "451 4.3.0 temporary failure",
        "452 4.3.1 insufficient system storage",
    ],
)
def test_nothing_that_is_said_to_mail_is_a_recipients_fault(reply: str) -> None:
    """The server has heard of no recipient yet: the mail is not charged, and another relay may take it."""
    code, _, text = reply.partition(" ")
    verdict = classify(Step.MAIL, int(code), text)
    assert (verdict.kind, verdict.cause, verdict.charged, verdict.try_next_relay) == (LATER, Cause.RELAY, False, True)
    assert verdict.about_relay


@pytest.mark.parametrize("reply", ["552 5.3.4 message too big", "552 size limit exceeded"])
def test_a_size_that_mail_refuses_is_the_mails_fault(reply: str) -> None:
    """MAIL carries SIZE (RFC 1870): no relay is at fault for a mail that is too large."""
    code, _, text = reply.partition(" ")
    verdict = classify(Step.MAIL, int(code), text)
    assert (verdict.kind, verdict.cause) == (NEVER, Cause.CONTENT)


@pytest.mark.parametrize("step", [Step.MAIL, Step.RCPT, Step.DATA])
@pytest.mark.parametrize(
    "reply", ["503 5.5.1 need MAIL", "503 need RCPT", "500 5.5.2 unrecognized", "421 4.4.2 timeout"]
)
def test_the_state_of_the_connection_is_not_charged_to_a_mail(step: Step, reply: str) -> None:
    """A conversation that is out of step begins again on another connection."""
    code, _, text = reply.partition(" ")
    verdict = classify(step, int(code), text)
    assert (verdict.kind, verdict.charged, verdict.try_next_relay) == (LATER, False, True)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.example}")
def test_every_rule_decides_over_its_example(rule: Rule) -> None:
    """No rule is hidden by one above it."""
    assert steps(rule)
    assert classify(steps(rule)[-1], *parts(rule)).cause is rule.cause


def test_only_a_missing_recipient_is_suppressed() -> None:
    """Of all rules one cause suppresses, and it needs a recipient that was named."""
    suppressing = [rule for rule in RULES if rule.cause is Cause.BAD_ADDRESS]
    assert all(set(steps(rule)) <= {Step.RCPT, Step.DATA, Step.DOT} for rule in suppressing)


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
    assert classify(Step.DOT, 451, text).after == seconds


def test_a_full_mailbox_is_tried_a_few_times_only() -> None:
    """Somebody may empty it, but not within minutes, and not after days."""
    verdict = classify(Step.RCPT, 552, "5.2.2 mailbox full")
    assert verdict.attempts == 4
    assert verdict.after == 3600


def test_552_to_a_recipient_means_later() -> None:
    """Old servers say 552 for too many recipients (RFC 5321, 4.5.3.1.10); for a body it is final."""
    assert classify(Step.RCPT, 552, "too many").kind is LATER
    assert classify(Step.DOT, 552, "too much").kind is NEVER


def test_an_enhanced_code_is_read_from_the_first_line_of_many() -> None:
    """The lines of a reply become one sentence."""
    verdict = classify(Step.RCPT, 550, "5.1.1 no such user\n5.1.1 look at our page")
    assert verdict.enhanced == "5.1.1"
    assert verdict.sentence == "5.1.1 no such user 5.1.1 look at our page"


def test_an_enhanced_code_in_brackets_is_read() -> None:
    """qmail says it at the end."""
    assert classify(Step.RCPT, 550, "sorry, no mailbox here by that name. (#5.1.1)").cause is Cause.BAD_ADDRESS


def test_silence_after_the_dot_is_uncertain() -> None:
    """RFC 1047: the server may have taken the mail, so the attempt counts."""
    assert lost("silent", after_dot=True).uncertain
    assert lost("silent", after_dot=True).charged
    assert not lost("silent", after_dot=False).uncertain


def test_only_what_is_certainly_not_out_may_go_elsewhere() -> None:
    """A connection lost before the final dot may fail over; one lost after it never does."""
    assert lost("gone", after_dot=False).try_next_relay
    assert not lost("gone", after_dot=True).try_next_relay
