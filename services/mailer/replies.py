"""What an SMTP reply means for the mail: sent, never, or later; and when.

The enhanced code (RFC 3463, registry of RFC 5248) decides where there is one, else the reply code (RFC 5321, 4.2).
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What became of one attempt."""

    SENT = "sent"
    TRANSIENT = "transient"
    PERMANENT = "permanent"


class Cause(StrEnum):
    """Why, where it matters to somebody: a bad address may be suppressed, a policy refusal must not be."""

    BAD_ADDRESS = "bad-address"
    MAILBOX_FULL = "mailbox-full"
    POLICY = "policy"
    GREYLISTED = "greylisted"
    CONTENT = "content"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The meaning of one attempt."""

    kind: Kind
    sentence: str
    """What the server said, or what went wrong."""
    code: int | None = None
    enhanced: str | None = None
    cause: Cause = Cause.OTHER
    after: float | None = None
    """The next attempt comes at the earliest in so many seconds."""
    attempts: int | None = None
    """Give up after so many attempts, where fewer than usual make sense."""
    uncertain: bool = False
    """The server may have taken the mail although it did not say so (RFC 1047)."""


GREYLIST_SECONDS = 300.0
MAILBOX_FULL_SECONDS = 3600.0
MAILBOX_FULL_ATTEMPTS = 4
LONGEST_WAIT = 86_400.0

# RFC 4954, 6 and RFC 3207, 4: the relay wants a password or TLS. Somebody will mend the settings; the mail can wait.
_ABOUT_US = (530, 534, 535, 538)

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\d)")
_AGAIN_IN = re.compile(r"\b(?:in|after|for|wait)\s+(\d{1,6})\s*(s|m|h)(?:ec|in|our)?(?:ond|ute)?s?\b", re.IGNORECASE)
_GREYLIST = re.compile(r"gr[ae]y-?\s?list", re.IGNORECASE)
_UNIT = {"s": 1, "m": 60, "h": 3600}


def classify(code: int, text: str, *, recipient_refused: bool = False) -> Verdict:
    """Return the meaning of a reply to MAIL, RCPT, DATA or the final dot.

    `text` is the reply without its code, lines joined by line feeds. `recipient_refused`: it answered RCPT.
    """
    sentence = " ".join(text.split())
    enhanced = _enhanced(text)
    if 200 <= code < 300:
        return Verdict(Kind.SENT, sentence, code, enhanced)
    if code < 400 or code > 599:
        return Verdict(Kind.TRANSIENT, f"the relay answered {code} {sentence}, which makes no sense here", code)
    if enhanced is not None and enhanced[0] == "2":
        enhanced = None  # a refusal that claims success: the reply code is the one that servers get right
    permanent = (enhanced[0] if enhanced else str(code)[0]) == "5"
    cause = _cause(code, enhanced, sentence)
    if code == 552 and enhanced is None and recipient_refused:
        permanent = False  # RFC 5321, 4.5.3.1.10: "too many recipients" of old servers
    if code in _ABOUT_US:
        permanent, cause = False, Cause.OTHER
    if cause is Cause.MAILBOX_FULL:
        wait = _wait(sentence) or MAILBOX_FULL_SECONDS
        return Verdict(Kind.TRANSIENT, sentence, code, enhanced, cause, wait, MAILBOX_FULL_ATTEMPTS)
    if permanent:
        return Verdict(Kind.PERMANENT, sentence, code, enhanced, cause)
    after = _wait(sentence)
    if cause is Cause.GREYLISTED:
        after = max(after or 0.0, GREYLIST_SECONDS)
    return Verdict(Kind.TRANSIENT, sentence, code, enhanced, cause, after)


def lost(sentence: str, *, after_dot: bool) -> Verdict:
    """Return the meaning of a connection that broke, or of silence, during an attempt."""
    return Verdict(Kind.TRANSIENT, sentence, uncertain=after_dot)


def _enhanced(text: str) -> str | None:
    match = _ENHANCED.match(text.lstrip())
    return ".".join(str(int(part)) for part in match.groups()) if match else None


def _cause(code: int, enhanced: str | None, sentence: str) -> Cause:
    if enhanced is None:
        if 400 <= code < 500 and _GREYLIST.search(sentence):
            return Cause.GREYLISTED
        return Cause.BAD_ADDRESS if code in (553, 551) else Cause.OTHER
    subject, detail = enhanced[2:].split(".")
    if subject == "1" and detail not in ("7", "8"):  # 7 and 8 are about the sender's address
        return Cause.BAD_ADDRESS
    if (subject, detail) == ("2", "2"):
        return Cause.MAILBOX_FULL
    if (subject, detail) == ("2", "1"):
        return Cause.BAD_ADDRESS  # mailbox disabled
    if subject == "7":
        greylisted = enhanced[0] == "4" or (400 <= code < 500 and _GREYLIST.search(sentence))
        return Cause.GREYLISTED if greylisted else Cause.POLICY
    if subject == "6" or (subject, detail) in (("2", "3"), ("3", "4")):
        return Cause.CONTENT
    return Cause.OTHER


def _wait(sentence: str) -> float | None:
    match = _AGAIN_IN.search(sentence)
    if match is None:
        return None
    return min(float(match[1]) * _UNIT[match[2].lower()], LONGEST_WAIT)
