"""The classification of SMTP replies.

The first rule of `RULES` that matches a reply to a command is applied. docs/mail.md shows the same table, written by
`scripts/write-tables`.

What a reply concerns follows from the command and the code. Before RCPT the server knows no recipient, so a refusal of
MAIL concerns our sender or the relay. The enhanced code (RFC 3463, registry of RFC 5248) takes precedence over the
reply code (RFC 5321, 4.2).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from services.mailer.relays.dialogue import Step


class Kind(StrEnum):
    """The result of one attempt."""

    SENT = "sent"
    TRANSIENT = "transient"
    PERMANENT = "permanent"


class Cause(StrEnum):
    """Why an attempt did not succeed. `CONSEQUENCES` has what follows from it."""

    BAD_ADDRESS = "bad-address"
    MAILBOX_FULL = "mailbox-full"
    POLICY = "policy"
    GREYLISTED = "greylisted"
    THROTTLED = "throttled"
    RELAY = "relay"
    CONTENT = "content"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Consequence:
    """What follows from a cause."""

    concerns: str
    """What the reply is about; for the documentation."""
    charged: bool = True
    """Whether the attempt counts against the mail."""
    next_relay: bool = False
    """Whether another relay may take the mail immediately."""
    suppress: bool = False
    """Whether a permanent refusal suppresses the recipient's address."""


CONSEQUENCES = {
    Cause.BAD_ADDRESS: Consequence("the recipient's address", suppress=True),
    Cause.MAILBOX_FULL: Consequence("the recipient's mailbox"),
    Cause.POLICY: Consequence("policy of the recipient's server"),
    Cause.GREYLISTED: Consequence("nothing: the server asks for a retry"),
    Cause.THROTTLED: Consequence("our rate", charged=False),
    Cause.RELAY: Consequence("our sender, host or login, or the relay", charged=False, next_relay=True),
    Cause.CONTENT: Consequence("content or size of the mail"),
    Cause.OTHER: Consequence("unknown"),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The classified result of one attempt."""

    kind: Kind
    sentence: str
    """The text of the server's reply, or what failed."""
    code: int | None = None
    enhanced: str | None = None
    cause: Cause = Cause.OTHER
    after: float | None = None
    """Minimum delay of the next attempt, in seconds."""
    attempts: int | None = None
    """Maximum number of attempts, if it is less than usual."""
    uncertain: bool = False
    """The server may have accepted the mail, but its reply was lost (RFC 1047)."""
    about_relay: bool = False
    """The reply was sent before the server knew the recipient, so it concerns the relay or our sender."""

    @property
    def try_next_relay(self) -> bool:
        """Return whether another relay may be tried immediately: this one certainly has not accepted the mail."""
        return CONSEQUENCES[self.cause].next_relay and not self.uncertain

    @property
    def charged(self) -> bool:
        """Return whether the attempt counts against the mail."""
        return self.kind is not Kind.TRANSIENT or self.uncertain or CONSEQUENCES[self.cause].charged


GREYLIST_SECONDS = 300.0
MAILBOX_FULL_SECONDS = 3600.0
MAILBOX_FULL_ATTEMPTS = 4
LONGEST_WAIT_SECONDS = 86_400.0

BEFORE_RECIPIENT = frozenset({Step.RSET, Step.MAIL})
BEFORE_MESSAGE = frozenset({Step.MAIL, Step.RCPT, Step.DATA})
WITH_RECIPIENT = frozenset({Step.RCPT, Step.DATA, Step.DOT})
ANY_STEP = frozenset(Step)


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table. An empty field matches every reply."""

    reply: str
    """The replies that it matches, for the documentation."""
    cause: Cause
    example: str
    """One such reply."""
    steps: frozenset[Step] = ANY_STEP
    codes: frozenset[int] = frozenset()
    severity: str = ""
    """`4` or `5`: the class of the enhanced code, or else of the reply code."""
    enhanced: tuple[str, ...] = ()
    """Subject and detail of enhanced codes, like `1.1`, or `7.` for a whole subject."""
    bare: bool = False
    """Matches only replies without an enhanced code."""
    words: re.Pattern[str] | None = None
    kind: Kind | None = None
    """The result, if it does not follow from the severity."""

    def matches(self, step: Step, code: int, enhanced: str | None, severity: str, sentence: str) -> bool:
        """Return whether this rule matches a reply."""
        return (
            step in self.steps
            and (not self.codes or code in self.codes)
            and (not self.severity or severity == self.severity)
            and (not self.enhanced or (enhanced is not None and _among(enhanced, self.enhanced)))
            and not (self.bare and enhanced is not None)
            and (self.words is None or self.words.search(sentence) is not None)
        )


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"\b(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_RATE = _words(
    "throttl", r"rate\b", r"too (?:many|much|fast|quickly)\b", "exceed", r"concurrent\b", r"unusual\b", "slow down"
)
# Also used for 5xx, so it must match nothing else: "exceeds the size limit" concerns the mail.
_SENDING_LIMIT = _words(
    r"rate.?limit", r"sending (?:limit|quota|rate)", r"(?:daily|hourly) (?:\w+ )?(?:limit|quota)",
    r"too many (?:messages|mails|e-?mails|connections)", r"at a rate\b", r"recipient limit\b",
)  # fmt: skip
_GREYLIST = _words(r"gr[ae]y-?\s?list")
_FULL = _words(r"mailbox (?:is )?(?:full|quota|size)", r"(?:over|exceed\w*) (?:\w+ )?quota", r"quota (?:is )?exceed",
               r"(?:mailbox|user|account|storage)\b.{0,40}\b(?:full|quota)\b")  # fmt: skip
_ABOUT_US = _words(
    r"relay(?:ing)?\b.{0,30}\b(?:denied|not permitted|not allowed|prohibited|disallowed)",
    r"(?:denied|not permitted|not allowed|unable|cannot) to relay", r"relay access", "rcpthosts", "badmailfrom",
    r"authenticat\w* (?:is )?required", r"(?:please|must|need to) (?:first )?(?:authenticate|log ?in)",
    r"not (?:logged|authenticated)", r"authenticate first", r"sender (?:address )?(?:rejected|refused|denied)",
    r"sender verif\w+", r"client host", r"helo (?:command )?rejected", r"not (?:allowed|authori[sz]ed) to send",
)  # fmt: skip
_EXPLICIT = frozenset({530, 534, 535, 538})
_PROTOCOL = frozenset({500, 502, 503, 504, 555})

RULES = (
    Rule("any refusal", Cause.RELAY, "502 5.5.1 not implemented", steps=frozenset({Step.RSET}), kind=Kind.TRANSIENT),
    Rule("530, 534, 535, 538: login or TLS required", Cause.RELAY, "530 5.7.0 authentication required",
         codes=_EXPLICIT, kind=Kind.TRANSIENT),
    Rule("421 with 4.7.x", Cause.THROTTLED, "421 4.7.28 unusual rate of mail",
         codes=frozenset({421}), enhanced=("7.",)),
    Rule("421 with text about the rate", Cause.THROTTLED, "421 too many connections", codes=frozenset({421}),
         words=_RATE),
    Rule("421: the server closes the connection", Cause.RELAY, "421 4.3.2 shutting down", codes=frozenset({421}),
         kind=Kind.TRANSIENT),
    Rule("5.3.4, 5.2.3: size refused", Cause.CONTENT, "552 5.3.4 message too big",
         steps=frozenset({Step.MAIL}), severity="5", enhanced=("3.4", "2.3"), kind=Kind.PERMANENT),
    Rule("552 without an enhanced code", Cause.CONTENT, "552 message exceeds the maximum size",
         steps=frozenset({Step.MAIL}), codes=frozenset({552}), bare=True),
    Rule("4xx with text about greylisting", Cause.GREYLISTED, "451 4.7.1 greylisted", severity="4", words=_GREYLIST),
    Rule("text that refuses relaying, our sender, our host or our login", Cause.RELAY,
         "554 5.7.1 <ada@example.com>: Relay access denied", words=_ABOUT_US, kind=Kind.TRANSIENT),
    Rule("4xx with text about the rate", Cause.THROTTLED, "450 too many messages, slow down",
         steps=BEFORE_RECIPIENT, severity="4", words=_RATE),
    Rule("454", Cause.THROTTLED, "454 4.7.0 throttling failure", codes=frozenset({454}), severity="4"),
    Rule("any refusal with text about a sending limit", Cause.THROTTLED, "550 5.4.5 daily sending quota exceeded",
         words=_SENDING_LIMIT, kind=Kind.TRANSIENT),
    Rule("any other refusal", Cause.RELAY, "550 5.1.0 invalid sender",
         steps=frozenset({Step.MAIL}), kind=Kind.TRANSIENT),
    Rule("500, 502, 503, 504, 555: protocol error", Cause.RELAY, "503 need MAIL command",
         steps=BEFORE_MESSAGE, codes=_PROTOCOL, bare=True, kind=Kind.TRANSIENT),
    Rule("5.5.0, 5.5.1, 5.5.2, 5.5.4: the same by its enhanced code", Cause.RELAY, "503 5.5.1 need MAIL command",
         steps=BEFORE_MESSAGE, severity="5", enhanced=("5.0", "5.1", "5.2", "5.4"), kind=Kind.TRANSIENT),
    Rule("5.1.7, 5.1.8: the sender's address", Cause.RELAY, "550 5.1.8 the sender's domain does not exist",
         severity="5", enhanced=("1.7", "1.8"), kind=Kind.TRANSIENT),
    Rule("x.2.2: mailbox full", Cause.MAILBOX_FULL, "552 5.2.2 mailbox full", enhanced=("2.2",), kind=Kind.TRANSIENT),
    Rule("text about a full mailbox", Cause.MAILBOX_FULL, "452 mailbox quota exceeded", bare=True, words=_FULL,
         kind=Kind.TRANSIENT),
    Rule("4xx with text about the rate", Cause.THROTTLED, "451 4.3.2 too many requests",
         severity="4", words=_RATE),
    Rule("450, 451 with 4.7.x", Cause.GREYLISTED, "451 4.7.1 try again later", severity="4", enhanced=("7.",)),
    Rule("x.1.1, x.1.2, x.1.3, x.1.6, x.1.10, x.2.1: no such address", Cause.BAD_ADDRESS, "550 5.1.1 no such user",
         steps=WITH_RECIPIENT, enhanced=("1.1", "1.2", "1.3", "1.6", "1.10", "2.1")),
    Rule("552 without an enhanced code: too many recipients (RFC 5321, 4.5.3.1.10)", Cause.OTHER, "552 too many",
         steps=frozenset({Step.RCPT}), codes=frozenset({552}), bare=True, kind=Kind.TRANSIENT),
    Rule("5.6.x, 5.3.4, 5.2.3; 552", Cause.CONTENT, "554 5.6.0 message content rejected", severity="5",
         enhanced=("6.", "3.4", "2.3")),
    Rule("552 without an enhanced code", Cause.CONTENT, "552 message too big", codes=frozenset({552}), bare=True),
    Rule("5.7.x", Cause.POLICY, "554 5.7.1 rejected by policy", severity="5", enhanced=("7.",)),
    Rule("any other 4xx", Cause.OTHER, "451 4.3.0 temporary failure", severity="4"),
    Rule("any other 5xx", Cause.OTHER, "550 rejected", severity="5"),
)  # fmt: skip

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\d)")
# qmail and its descendants put it at the end.
_ENHANCED_AT_END = re.compile(r"\(#([245])\.(\d{1,3})\.(\d{1,3})\)\s*$")
_CLOCK = re.compile(r"\bin\s+(\d{1,2}):(\d{2}):(\d{2})\b", re.IGNORECASE)
_AGAIN_IN = re.compile(r"\b(?:in|after|for|wait)\s+(\d{1,6})\s*(s|m|h)(?:ec|in|our)?(?:ond|ute)?s?\b", re.IGNORECASE)
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}


def classify(step: Step, code: int, text: str) -> Verdict:
    """Return the result of the reply to `step`; `text` is the reply without its code, lines joined by line feeds."""
    sentence = " ".join(text.split())
    enhanced = enhanced_code(text)
    if 200 <= code < 300:
        return Verdict(Kind.SENT, sentence, code, enhanced)
    if code < 400 or code > 599:
        return Verdict(Kind.TRANSIENT, f"the relay answered {code} {sentence}, which is not a valid reply", code)
    if enhanced is not None and enhanced[0] == "2":
        enhanced = None  # a refusal with an enhanced code of success: the reply code is more reliable
    rule, severity = deciding_rule(step, code, enhanced, sentence)
    kind = rule.kind or (Kind.PERMANENT if severity == "5" else Kind.TRANSIENT)
    after, attempts = _wait(sentence), None
    if rule.cause is Cause.MAILBOX_FULL:
        after, attempts = after or MAILBOX_FULL_SECONDS, MAILBOX_FULL_ATTEMPTS
    elif rule.cause is Cause.GREYLISTED:
        after = max(after or 0.0, GREYLIST_SECONDS)
    about_relay = step in BEFORE_RECIPIENT or code in _EXPLICIT
    if kind is Kind.PERMANENT:
        after = None
    return Verdict(kind, sentence, code, enhanced, rule.cause, after, attempts, about_relay=about_relay)


def deciding_rule(step: Step, code: int, enhanced: str | None, sentence: str) -> tuple[Rule, str]:
    """Return the first rule that matches a refusal, and the severity of the refusal."""
    severity = enhanced[0] if enhanced else str(code)[0]
    return next(rule for rule in RULES if rule.matches(step, code, enhanced, severity, sentence)), severity


def lost(sentence: str, *, after_dot: bool) -> Verdict:
    """Return the result of an attempt during which the connection was lost or the server did not reply in time."""
    return Verdict(Kind.TRANSIENT, sentence, cause=Cause.RELAY, uncertain=after_dot)


def _among(enhanced: str, patterns: Iterable[str]) -> bool:
    rest = enhanced[2:]
    return any(rest.startswith(pattern) if pattern.endswith(".") else rest == pattern for pattern in patterns)


def enhanced_code(text: str) -> str | None:
    """Return the enhanced code at the beginning of a reply, or in brackets at its end, or None."""
    match = _ENHANCED.match(text.lstrip()) or _ENHANCED_AT_END.search(text)
    return ".".join(str(int(part)) for part in match.groups()) if match else None


def _wait(sentence: str) -> float | None:
    if (clock := _CLOCK.search(sentence)) is not None:
        hours, minutes, seconds = map(int, clock.groups())
        return min(hours * 3600.0 + minutes * 60 + seconds, LONGEST_WAIT_SECONDS)
    match = _AGAIN_IN.search(sentence)
    if match is None:
        return None
    return min(float(match[1]) * _UNIT_SECONDS[match[2].lower()], LONGEST_WAIT_SECONDS)
