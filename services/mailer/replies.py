"""What an SMTP reply means for the mail: sent, never, or later; and when. `docs/mail.md` has the whole table.

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
    """Refused for who we are or how we send: the domain, or the relay, is left alone for a while."""
    GREYLISTED = "greylisted"
    THROTTLED = "throttled"
    """Too fast: what comes after it goes slower."""
    RELAY = "relay"
    """The relay cannot be used, or wants a password or another sender: no mail's fault, and another relay may do."""
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
    about_relay: bool = False
    """Said before the server knew the recipient, so it is about the relay or about us."""

    @property
    def elsewhere(self) -> bool:
        """Say whether another relay may be tried at once: this one is at fault, and certainly has not the mail."""
        return self.cause is Cause.RELAY and not self.uncertain


GREYLIST_SECONDS = 300.0
MAILBOX_FULL_SECONDS = 3600.0
MAILBOX_FULL_ATTEMPTS = 4
LONGEST_WAIT = 86_400.0

# RFC 4954, 6 and RFC 3207, 4: the relay wants a password or TLS. Somebody will mend the settings; the mail can wait.
_ABOUT_US = (530, 534, 535, 538)

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?!\d)")
# Subject and detail: a bad or unknown sender's address, said to MAIL.
_SENDER = {("1", "7"), ("1", "8")}
_THROTTLE = re.compile(r"\b(?:throttl\w*|rate|too (?:many|much|fast)|exceed\w*|concurrent|unusual)\b", re.IGNORECASE)
_CLOCK = re.compile(r"\bin\s+(\d{1,2}):(\d{2}):(\d{2})\b", re.IGNORECASE)
_AGAIN_IN = re.compile(r"\b(?:in|after|for|wait)\s+(\d{1,6})\s*(s|m|h)(?:ec|in|our)?(?:ond|ute)?s?\b", re.IGNORECASE)
_GREYLIST = re.compile(r"gr[ae]y-?\s?list", re.IGNORECASE)
_UNIT = {"s": 1, "m": 60, "h": 3600}


def classify(code: int, text: str, *, recipient_refused: bool = False, sender_refused: bool = False) -> Verdict:
    """Return the meaning of a reply to MAIL, RCPT, DATA or the final dot.

    `text` is the reply without its code, lines joined by line feeds. `recipient_refused`: it answered RCPT;
    `sender_refused`: it answered MAIL.
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
    after = _wait(sentence)
    if code in _ABOUT_US or (sender_refused and permanent and _about_us(cause, enhanced)):
        return Verdict(Kind.TRANSIENT, sentence, code, enhanced, Cause.RELAY, after, about_relay=True)
    if code == 552 and enhanced is None and recipient_refused:
        permanent = False  # RFC 5321, 4.5.3.1.10: "too many recipients" of old servers
    if cause is Cause.MAILBOX_FULL:
        wait = after or MAILBOX_FULL_SECONDS
        return Verdict(Kind.TRANSIENT, sentence, code, enhanced, cause, wait, MAILBOX_FULL_ATTEMPTS)
    if permanent:
        return Verdict(Kind.PERMANENT, sentence, code, enhanced, cause)
    if cause is Cause.GREYLISTED:
        after = max(after or 0.0, GREYLIST_SECONDS)
    return Verdict(Kind.TRANSIENT, sentence, code, enhanced, cause, after, about_relay=sender_refused)


def _about_us(cause: Cause, enhanced: str | None) -> bool:
    return cause is Cause.POLICY or (enhanced is not None and tuple(enhanced[2:].split(".")) in _SENDER)


def lost(sentence: str, *, after_dot: bool) -> Verdict:
    """Return the meaning of a connection that broke, or of silence, during an attempt."""
    return Verdict(Kind.TRANSIENT, sentence, cause=Cause.RELAY, uncertain=after_dot)


def _enhanced(text: str) -> str | None:
    match = _ENHANCED.match(text.lstrip())
    return ".".join(str(int(part)) for part in match.groups()) if match else None


def _cause(code: int, enhanced: str | None, sentence: str) -> Cause:
    if enhanced is None:
        if 400 <= code < 500 and _GREYLIST.search(sentence):
            return Cause.GREYLISTED
        if _throttled(code, sentence):
            return Cause.THROTTLED
        return Cause.BAD_ADDRESS if code in (553, 551) else Cause.OTHER
    subject, detail = enhanced[2:].split(".")
    if subject == "1" and detail not in ("7", "8"):  # 7 and 8 are about the sender's address
        return Cause.BAD_ADDRESS
    if (subject, detail) == ("2", "2"):
        return Cause.MAILBOX_FULL
    if (subject, detail) == ("2", "1"):
        return Cause.BAD_ADDRESS  # mailbox disabled
    greylisted = _GREYLIST.search(sentence) is not None
    if _throttled(code, sentence) and not greylisted:
        return Cause.THROTTLED
    if subject == "7":
        return Cause.GREYLISTED if enhanced[0] == "4" or (code < 500 and greylisted) else Cause.POLICY
    if subject == "6" or (subject, detail) in (("2", "3"), ("3", "4")):
        return Cause.CONTENT
    return Cause.OTHER


def _throttled(code: int, sentence: str) -> bool:
    return code in (421, 454) or (code < 500 and _THROTTLE.search(sentence) is not None)


def _wait(sentence: str) -> float | None:
    if (clock := _CLOCK.search(sentence)) is not None:
        hours, minutes, seconds = map(int, clock.groups())
        return min(hours * 3600.0 + minutes * 60 + seconds, LONGEST_WAIT)
    match = _AGAIN_IN.search(sentence)
    if match is None:
        return None
    return min(float(match[1]) * _UNIT[match[2].lower()], LONGEST_WAIT)
