"""Mail: the request of a client, and the task that the gateway sends to the mailer."""

import base64
from functools import partial
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from bellhop.contracts.addresses import Address
from bellhop.contracts.base import (
    INT32_MAX,
    Contract,
    Data,
    DueTime,
    ErrorMessage,
    Id,
    Line,
    Name,
    TaskId,
    Text,
    one_line,
    storable,
)
from bellhop.contracts.media_types import ContentType
from bellhop.contracts.tasks import Lane

MAX_BODY = 512 * 1024
MAX_HEADER = 998
MAX_REFERENCES = 4000
"""Characters of a header, and of `References`, which is folded."""
MAX_HEADERS = 20
OWN_HEADERS = 4
"""How many headers and levels of data the gateway may add to what was asked for: a task holds them, too."""
OWN_DEPTH = 4
HEADERS_ALLOWED = ("In-Reply-To", "References", "List-Id", "Auto-Submitted", "Importance", "Precedence")


HeaderValue = Annotated[str, StringConstraints(min_length=1, max_length=65_536), AfterValidator(one_line)]
HeaderName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,63}$"),
    ErrorMessage("must be the name of a header: a letter, then up to 63 letters, digits and hyphens"),
]


def allowed_headers(headers: dict[str, str]) -> dict[str, str]:
    """Return `headers`, of which none may change the recipients, the body or the signature.

    `References` grows with every reply, so a long one is shortened and not refused.

    Raises:
        ValueError: a header is not allowed, or too long.
    """
    allowed = {name.lower() for name in HEADERS_ALLOWED}
    for name in headers:
        if name.lower() not in allowed and not name.lower().startswith("x-"):
            raise ValueError(f"{name} is not allowed; allowed are X-… and {', '.join(HEADERS_ALLOWED)}")
    return {name: _bounded(name, value) for name, value in headers.items()}


def _bounded(name: str, value: str) -> str:
    if name.lower() == "references":
        return shortened_references(value)
    if len(value) > MAX_HEADER:
        raise ValueError(f"{name} has {len(value)} characters, and a header may have {MAX_HEADER}")
    return value


def shortened_references(value: str) -> str:
    """Return the ids of a thread, if they are too long without some in the middle.

    The first one names the thread and the last ones what is replied to (RFC 5537, 3.4.4 does the same).
    """
    if len(value) <= MAX_REFERENCES:
        return value
    first, *others = value.split()
    kept: list[str] = []
    size = len(first)
    for each in reversed(others):
        size += 1 + len(each)
        if size > MAX_REFERENCES:
            break
        kept.append(each)
    return " ".join([first, *reversed(kept)])


MAX_ATTACHMENT_BYTES = 10 * 1024 * 1024
MAX_ATTACHMENTS_BYTES = 20 * 1024 * 1024
"""Bytes of one attachment, and of all attachments of a mail."""
MAX_INLINE_BYTES = 64 * 1024
"""Bytes of an attachment that travels with the task; what is larger is uploaded and referred to."""


Filename = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200, pattern=r"^[^/\\]+$"),
    ErrorMessage("must be the name of a file, of 1 to 200 characters without / and \\"),
    AfterValidator(one_line),
]


def small_base64(text: str) -> str:
    """Return `text` if it is base64 (RFC 4648, 4) of at most `MAX_INLINE_BYTES` bytes.

    Raises:
        ValueError: it is not.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        raise ValueError("must be base64 without line breaks") from None
    if len(content) > MAX_INLINE_BYTES:
        raise ValueError(
            f"must hold at most {MAX_INLINE_BYTES} bytes: POST /v1/attachments takes up to {MAX_ATTACHMENT_BYTES}"
        )
    return text


class AttachmentRequest(Contract):
    """One attachment: an uploaded one by its id, or a small one by its content."""

    id: Id | None = None
    filename: Filename | None = None
    content_type: ContentType | None = None
    content_base64: (
        Annotated[str, StringConstraints(max_length=2 * MAX_INLINE_BYTES), AfterValidator(small_base64)] | None
    ) = None

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        inline = (self.filename, self.content_type, self.content_base64)
        if self.id is None and None in inline:
            raise ValueError("give the id of an upload, or filename, content_type and content_base64")
        if self.id is not None and inline != (None, None, None):
            raise ValueError("an upload has its own name, type and content: give only its id")
        return self


class MailContent(Contract):
    """Content of a mail: bodies with a subject, or a template with its data."""

    subject: Line | None = None
    text: Annotated[Text, StringConstraints(max_length=MAX_BODY)] | None = None
    html: Annotated[Text, StringConstraints(max_length=MAX_BODY)] | None = None
    template: Name | None = None
    data: Data = Field(default_factory=dict)
    reply_to: Address | None = None
    headers: Annotated[
        dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS), AfterValidator(allowed_headers)
    ] = Field(default_factory=dict)
    attachments: Annotated[list[AttachmentRequest], Field(max_length=20)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _bodies_or_template(self) -> Self:
        if self.template is None:
            if self.text is None and self.html is None:
                raise ValueError("give text, html or both; or name a template")
            if self.subject is None:
                raise ValueError("give a subject: only a template has its own")
            if self.data:
                raise ValueError("data is only allowed with a template")
        elif self.text is not None or self.html is not None or self.subject is not None:
            raise ValueError("a template has its own subject and bodies: leave subject, text and html out")
        return self


PersonName = Annotated[Line, StringConstraints(max_length=200)]


class MailRequest(MailContent):
    """`POST /v1/mail`."""

    to: Address
    to_name: PersonName | None = None
    """The name that stands before the address in the mail's head."""
    lane: Annotated[Lane, Field(strict=False)] = Lane.NORMAL
    send_at: DueTime | None = None


class MailTask(MailContent):
    """One mail to one recipient (type `mail.requested`, on the queue of its lane)."""

    # What the gateway adds to a valid request must not make the task invalid: it would fail behind a 202.
    headers: Annotated[
        dict[HeaderName, HeaderValue], Field(max_length=MAX_HEADERS + OWN_HEADERS), AfterValidator(allowed_headers)
    ] = Field(default_factory=dict)
    data: Annotated[dict[str, JsonValue], AfterValidator(partial(storable, depth=1 - OWN_DEPTH))] = Field(
        default_factory=dict
    )

    task_id: TaskId
    round: Annotated[int, Field(ge=1, le=INT32_MAX)] = 1
    """Counts from 1; `POST /v1/tasks/{id}/retry` starts the next round, whose attempts count from 1 again."""
    owner: Id
    """The id of the API key that asked for it."""
    to: Address
    to_name: PersonName | None = None
    lane: Annotated[Lane, Field(strict=False)] = Lane.NORMAL
    event_id: Id | None = None
    """Type of the event that a template reacted to; None for a mail that a client requested."""
    list_unsubscribe: Annotated[Line, StringConstraints(pattern=r"^https?://[!-;=?-~]+$")] | None = None
    """The link that ends the subscription; it becomes the two headers of RFC 8058. No client can set them."""


MailDocument = dict[str, Any]
"""A `MailContent`, `MailRequest` or `MailTask` as JSON."""


def mail_document(content: MailContent) -> MailDocument:
    """Return `content` as it is stored and sent: without what is absent, and without what the gateway does itself."""
    return content.model_dump(mode="json", exclude={"send_at"}, exclude_none=True, exclude_defaults=True)
