"""Text that is the same for all recipients but for a few fields: `Dear {{ subscriber.name | default("reader") }}`.

The syntax of fields is that of template files, and there is nothing else: no conditions, loops or comments, so `{#` is
plain text. A client's text is filled in here for a million people, in time that depends only on its length.
For more, use a template, which the mailer renders.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from bellhop.contracts.mail import MAX_BODY, MailDocument

_FIELD = re.compile(r"\{\{(?P<inner>[^{}]*)\}\}|(?P<stray>\{\{|\{%)")
_INNER = re.compile(
    r"\s*(?:data\.)?subscriber\.(?P<path>name|email|unsubscribe_url|attributes(?:\.[A-Za-z0-9_-]+){1,32})\s*"
    r"(?:\|\s*default\(\s*(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)')\s*\)\s*)?"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
MAX_SUBJECT = 998
MAX_FIELDS = 1000
"""In one text: each is filled in for every recipient."""
LINK = "subscriber.unsubscribe_url"


class MergeFieldError(Exception):
    """A field cannot be filled in, or is invalid; the text names the line."""


@dataclass(frozen=True, slots=True)
class _Field:
    path: tuple[str, ...]
    default: str | None
    where: str

    def value(self, subscriber: Mapping[str, object]) -> str:
        found: object = subscriber
        for name in self.path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None or found == "":
            if self.default is not None:
                return self.default
            if found is None:
                raise MergeFieldError(f"{self.where}: this subscriber has no {'.'.join(self.path)}")
        return found if isinstance(found, str) else str(found)


class MergedText:
    """One text with fields, parsed once."""

    def __init__(self, name: str, source: str) -> None:
        """Parse `source`; `name` is for the sentences of `MergeFieldError`."""
        self._pieces: list[str | _Field] = []
        end, line = 0, 1
        for match in _FIELD.finditer(source):
            # Counted from the field before: counting from the beginning would take quadratic time.
            line += source.count("\n", end, match.start())
            where = f"{name}, line {line}"
            inner = _INNER.fullmatch(match["inner"] or "")
            if inner is None:
                raise MergeFieldError(
                    f"{where}: {match[0][:80]!r} cannot be filled in. There are {{{{ subscriber.name }}}}, .email,"
                    ' .unsubscribe_url and .attributes.<name>, each with | default("…"); for more, name a template'
                )
            if len(self._pieces) >= 2 * MAX_FIELDS:
                raise MergeFieldError(
                    f"{where}: more than {MAX_FIELDS} fields in one text; use fewer, or name a template"
                )
            self._pieces.append(source[end : match.start()])
            default = inner["double"] if inner["double"] is not None else inner["single"]
            self._pieces.append(_Field(tuple(inner["path"].split(".")), default, where))
            line += match[0].count("\n")
            end = match.end()
        self._pieces.append(source[end:])

    def fill(self, subscriber: Mapping[str, object], quote: Callable[[str], str] = str) -> str:
        """Return the text for one subscriber; raises `MergeFieldError`."""
        return "".join(piece if isinstance(piece, str) else quote(piece.value(subscriber)) for piece in self._pieces)


class MergedMail:
    """Subject and bodies of a mail to many."""

    def __init__(self, content: MailDocument) -> None:
        """Parse a `MailContent`, a dictionary; raises `MergeFieldError` for an invalid field."""
        self._subject = MergedText("subject", content["subject"])
        self._text = self._html = None
        if "text" in content:
            self._text = MergedText("text", _short(_with_footer(content["text"])))
        if "html" in content:
            self._html = MergedText("html", _short(_with_html_footer(content["html"])))

    def fill(self, subscriber: Mapping[str, object]) -> dict[str, str]:
        """Return subject, text and html for one subscriber; raises `MergeFieldError`."""
        # A line end in a name must not become a line end in a header.
        filled = {"subject": _CONTROL.sub(" ", self._subject.fill(subscriber)).strip()[:MAX_SUBJECT]}
        if not filled["subject"]:
            raise MergeFieldError("the subject is empty")
        if self._text is not None:
            filled["text"] = self._text.fill(subscriber)
        if self._html is not None:
            filled["html"] = self._html.fill(subscriber, escape)
        if any(len(part) > MAX_BODY for part in filled.values()):
            raise MergeFieldError(f"a body is longer than {MAX_BODY} characters")
        return filled


def _short(text: str) -> str:
    """Reject a body that is too long with the footer, which is added after the length was checked."""
    if len(text) > MAX_BODY:
        raise MergeFieldError(f"a body is longer than {MAX_BODY} characters with the link to unsubscribe at its end")
    return text


def _has_link(text: str) -> bool:
    """Return whether a text has a field for the link; the name alone, or a field within a comment, shows no link."""
    first, *others = text.split("<!--")
    visible = first + "".join(each.partition("-->")[2] for each in others)
    fields = (_INNER.fullmatch(match["inner"] or "") for match in _FIELD.finditer(visible))
    return any(inner is not None and inner["path"] == "unsubscribe_url" for inner in fields)


def _with_footer(text: str) -> str:
    """Make sure that every mail has a visible link to unsubscribe."""
    return text if _has_link(text) else f"{text.rstrip()}\n\n-- \nUnsubscribe: {{{{ {LINK} }}}}\n"


def _with_html_footer(html: str) -> str:
    if _has_link(html):
        return html
    footer = f'<hr><p><a href="{{{{ {LINK} }}}}">Unsubscribe</a></p>\n'
    head, end, tail = html.rpartition("</body>")
    return f"{head}{footer}{end}{tail}" if end else f"{html}{footer}"
