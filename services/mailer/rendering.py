"""Templates: one file each, with a front matter and a text part, an HTML part or both.

    ---
    subject: Your order {{ data.order }}
    on: order.placed                # optional: the event types for which this mail is sent,
    to: "{{ data.email }}"          # and its recipients: one address, or an expression that returns a list of
                                    # addresses, each of which is then `data.recipient`
    ---
    Thank you.
    --- html ---
    <p>Thank you.</p>

The name of the template is the file's name without `.mail`. Values are escaped in the HTML part. A name that is
missing in the data is an error, never an empty space in a mail.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined
from jinja2.sandbox import SandboxedEnvironment

from services.mailer.required import required

SUFFIX = ".mail"
_PART = re.compile(r"^--- *(text|html) *---\s*$")
_EXPRESSION = re.compile(r"\s*\{\{(?P<inner>[^{}]*)\}\}\s*")
_LISTED = re.compile(r"\s*\{\{\s*data\.([A-Za-z_]\w*)\s*[|}]")
_KEYS = {"subject", "on", "to"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]+")
MAX_SUBJECT = 998


class RenderingError(Exception):
    """The template cannot be rendered with this data; the text names file and line."""


class BadTemplate(Exception):
    """A template file cannot be used; the text names file and line."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rendered parts of a template."""

    subject: str
    text: str | None
    html: str | None


@dataclass(frozen=True, slots=True)
class _Part:
    """One compiled part of a file, and the number of lines before it."""

    template: Template
    file: str
    offset: int
    required: frozenset[str]
    """The names of `data` that every rendering needs."""

    def render(self, data: dict[str, Any]) -> str:
        try:
            return self.template.render(data=data)
        except Exception as error:  # a template may divide by zero, or call a value that is not a function
            raise RenderingError(f"{self.file}, line {self._line(error)}: {_reason(error)}") from error

    def _line(self, error: Exception) -> int:
        if isinstance(error, TemplateSyntaxError):
            return error.lineno + self.offset
        line, trace = 1, error.__traceback__
        while trace is not None:  # Jinja rewrites tracebacks to the lines of the template
            if trace.tb_frame.f_code.co_filename == self.file:
                line = trace.tb_lineno
            trace = trace.tb_next
        return line + self.offset


@dataclass(frozen=True, slots=True)
class MailTemplate:
    """One template file."""

    name: str
    on: tuple[str, ...]
    _subject: _Part
    _text: _Part | None
    _html: _Part | None
    _to: Callable[[dict[str, Any]], Any] | None
    _listed: str | None
    """The name in the data of the list that `to` returns."""

    @property
    def required(self) -> list[str]:
        """Return the names of the data that every rendering needs, sorted."""
        parts = (self._subject, self._text, self._html)
        return sorted({name for part in parts if part is not None for name in part.required})

    def render(self, data: dict[str, Any]) -> Rendered:
        """Render the template.

        Raises:
            RenderingError: a name is missing in `data`, or the subject comes out empty.
        """
        # A line end in a value must not become a line end in a header.
        subject = _CONTROL.sub(" ", self._subject.render(data)).strip()[:MAX_SUBJECT]
        if not subject:
            raise RenderingError(f"{self._subject.file}: the subject comes out empty")
        return Rendered(
            subject,
            self._text.render(data) if self._text else None,
            self._html.render(data) if self._html else None,
        )

    def recipients(self, data: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return the recipients of an event's mails, each once and not validated, with the data of their mail.

        If `to` returns a list, its items are addresses, or objects with an `email`. Each mail then has its own item
        as `data.recipient`, and its data does not contain the list: a thousand copies of a list of a thousand
        recipients would be a million.

        Raises:
            RenderingError: the front matter's `to` cannot be evaluated, or returns no address and no list of addresses.
        """
        if self._to is None:
            return []
        value = self._to(data)
        if isinstance(value, str):
            return [(value.strip(), data)]
        if not isinstance(value, list):
            raise RenderingError(f"{self.name}{SUFFIX}: to must give an address or a list of addresses")
        shared = {name: each for name, each in data.items() if name != self._listed}
        found: dict[str, dict[str, Any]] = {}
        for one in value:
            recipient = {"email": one} if isinstance(one, str) else one
            if not isinstance(recipient, dict) or not isinstance(recipient.get("email"), str):
                raise RenderingError(f"{self.name}{SUFFIX}: to must give addresses, or objects with an email")
            found.setdefault(recipient["email"].strip(), shared | {"recipient": recipient})
        return list(found.items())


class Templates:
    """All templates of a folder, read at the start."""

    def __init__(self, folder: Path) -> None:
        """Read and compile the files.

        Raises:
            BadTemplate: a file cannot be used.
        """
        self._templates = {path.name.removesuffix(SUFFIX): _load(path) for path in _files(folder)}

    def get(self, name: str) -> MailTemplate:
        """Return a template.

        Raises:
            RenderingError: there is no such template; the text lists the templates.
        """
        template = self._templates.get(name)
        if template is None:
            known = ", ".join(sorted(self._templates)) or "none"
            raise RenderingError(f"there is no template {name!r}; there are: {known}")
        return template

    def reacting_to(self, event_type: str) -> list[MailTemplate]:
        """Return the templates whose mails are sent for an event of this type."""
        return [template for template in self._templates.values() if event_type in template.on]

    @property
    def names(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self._templates)


def reaction_types(folder: Path) -> list[str]:
    """Return the event types that the templates in `folder` react to: the bindings of `mailer.reactions`."""
    return sorted({event_type for path in _files(folder) for event_type in _split(path)[0].get("on", [])})


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BadTemplate(f"{folder} is not a folder: set BELLHOP_TEMPLATES to the folder of the templates")
    return sorted(folder.glob(f"*{SUFFIX}"))


def _load(path: Path) -> MailTemplate:
    head, parts = _split(path)
    plain = _environment(autoescape=False)
    return MailTemplate(
        name=path.name.removesuffix(SUFFIX),
        on=tuple(head.get("on", [])),
        _subject=_compile(plain, head["subject"], path, 1),
        _text=_compile(plain, *parts["text"]) if "text" in parts else None,
        _html=_compile(_environment(autoescape=True), *parts["html"]) if "html" in parts else None,
        _to=_recipients(plain, head["to"], path) if "to" in head else None,
        _listed=match[1] if (match := _LISTED.match(head.get("to", ""))) else None,
    )


def _environment(*, autoescape: bool) -> SandboxedEnvironment:
    return SandboxedEnvironment(autoescape=autoescape, undefined=StrictUndefined, keep_trailing_newline=True)


def _split(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, Path, int]]]:
    """Return the checked front matter, and for each part its source, file and number of lines before it."""
    lines = path.read_text("utf-8").splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    if not lines or lines[0].rstrip() != "---" or end is None:
        raise BadTemplate(f"{path}: must begin with a front matter between two lines ---")
    head = _front_matter(path, "".join(lines[1:end]))
    parts: dict[str, tuple[str, Path, int]] = {}
    kind, start = "text", end + 1
    for number in range(end + 1, len(lines) + 1):
        mark = _PART.match(lines[number]) if number < len(lines) else None
        if mark is None and number < len(lines):
            continue
        source = "".join(lines[start:number])
        if source.strip():
            if kind in parts:
                raise BadTemplate(f"{path}, line {start}: a second {kind} part")
            parts[kind] = (source, path, start)
        if mark is not None:
            kind, start = mark[1], number + 1
    if not parts:
        raise BadTemplate(f"{path}: needs a text part, or an HTML part after a line '--- html ---'")
    return head, parts


def _front_matter(path: Path, source: str) -> dict[str, Any]:
    try:
        # The base loader makes strings of everything. YAML 1.1 would read the key `on` as the boolean true.
        head = yaml.load(source, Loader=yaml.BaseLoader)  # noqa: S506 - the base loader builds no objects
    except yaml.YAMLError as error:
        raise BadTemplate(f"{path}: the front matter is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, dict) or not isinstance(head.get("subject"), str):
        raise BadTemplate(f"{path}: the front matter must have a subject")
    if unknown := set(head) - _KEYS:
        raise BadTemplate(f"{path}: the front matter knows subject, on and to, not {', '.join(sorted(unknown))}")
    if ("on" in head) != ("to" in head):
        raise BadTemplate(f"{path}: on and to belong together: which event sends the mail, and to whom")
    if "on" in head:
        types = [head["on"]] if isinstance(head["on"], str) else head["on"]
        if not isinstance(types, list) or not all(isinstance(one, str) and _EVENT_TYPE.fullmatch(one) for one in types):
            raise BadTemplate(f"{path}: on must be an event type like order.placed, or a list of them")
        if not isinstance(head["to"], str):
            raise BadTemplate(f'{path}: to must be text like "{{{{ data.email }}}}", with its quotes')
        head["on"] = types
    return head


_EVENT_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def _compile(environment: SandboxedEnvironment, source: str, path: Path, offset: int) -> _Part:
    try:
        code = environment.compile(source, name=path.name, filename=path.name)
    except TemplateSyntaxError as error:
        hint = "; write {{ '{#' }} for characters that are not a comment" if "comment" in (error.message or "") else ""
        raise BadTemplate(f"{path}, line {error.lineno + offset}: {error.message}{hint}") from None
    needs = frozenset(required(environment.parse(source)))
    return _Part(Template.from_code(environment, code, {}), path.name, offset, needs)


def _recipients(environment: SandboxedEnvironment, source: str, path: Path) -> Callable[[dict[str, Any]], Any]:
    """Return the function that evaluates `to`. A single expression may return a list; everything else returns text."""
    expression = _EXPRESSION.fullmatch(source)
    if expression is None:
        part = _compile(environment, source, path, 1)
        return part.render
    try:
        evaluate = environment.compile_expression(expression["inner"], undefined_to_none=False)
    except TemplateError as error:
        raise BadTemplate(f"{path}: to: {error.message}") from None

    def value(data: dict[str, Any]) -> Any:
        try:
            result = evaluate(data=data)
            if isinstance(result, Undefined):
                str(result)  # StrictUndefined raises an error that names what is missing
        except Exception as error:
            raise RenderingError(f"{path.name}: to: {_reason(error)}") from error
        return result

    return value


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"
