"""Make the mail of a task: render its template, fetch its attachments, encode its addresses for SMTP."""

import asyncio
from email.utils import formatdate
from html import escape

from bellhop.contracts.addresses import wire
from bellhop.contracts.base import derived_id
from bellhop.contracts.mail import MailTask
from services.mailer.attachments import Attachments
from services.mailer.message import Attachment, Mail, build
from services.mailer.rendering import Templates
from services.mailer.settings import MailerSettings


class Composer:
    """Makes mails of tasks."""

    def __init__(self, settings: MailerSettings, templates: Templates, attachments: Attachments) -> None:
        self._settings = settings
        self._templates = templates
        self._attachments = attachments

    async def compose(self, task: MailTask) -> Mail:
        """Return the mail of a task.

        Raises:
            RenderingError: the template does not exist, or cannot be rendered with the data.
            ValueError: the mail can never be built; the text names the reason.
            PeerUnavailable: an attachment cannot be fetched at the moment.
        """
        subject, text, html = task.subject, task.text, task.html
        if task.template is not None:
            rendered = self._templates.get(task.template).render(task.data)
            subject, text, html = rendered.subject, rendered.text, rendered.html
            if task.list_unsubscribe is not None:
                text, html = _with_link(text, html, task.list_unsubscribe)
        attachments: tuple[Attachment, ...] = ()
        if task.attachments:
            attachments = await self._attachments.get(task.attachments)
        return Mail(
            to=wire(task.to),
            subject=subject or "",
            message_id=message_id(task.task_id, self._settings.domain),
            text=text,
            html=html,
            reply_to=task.reply_to and wire(task.reply_to),
            headers=_headers(task),
            to_name=task.to_name or "",
            from_name=self._settings.mail_from_name,
            attachments=attachments,
        )


def _with_link(text: str | None, html: str | None, url: str) -> tuple[str | None, str | None]:
    """Return the bodies of a mail to a list with a visible link to unsubscribe, also if its template has none."""
    if text is not None and url not in text:
        text = f"{text.rstrip()}\n\n-- \nUnsubscribe: {url}\n"
    if html is not None and escape(url) not in html:
        head, end, tail = html.rpartition("</body>")
        footer = f'<hr><p><a href="{escape(url)}">Unsubscribe</a></p>\n'
        html = f"{head}{footer}{end}{tail}" if end else f"{html}{footer}"
    return text, html


def _headers(task: MailTask) -> dict[str, str]:
    if task.list_unsubscribe is None:
        return task.headers
    one_click = {
        "List-Unsubscribe": f"<{task.list_unsubscribe}>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    }
    return task.headers | one_click  # RFC 8058, 3.1


async def to_bytes(mail: Mail, from_line: bytes) -> bytes:
    """Return the bytes of a mail.

    Raises:
        ValueError: a header cannot be written.
    """
    if not mail.attachments:
        return build(mail, from_line, formatdate())
    # Base64 of megabytes takes tens of milliseconds: in a thread, it does not block the event loop.
    return await asyncio.to_thread(build, mail, from_line, formatdate())


def message_id(task_id: str, domain: str) -> str:
    """Return the Message-ID of a task's mail, the same for all its attempts."""
    plain = task_id.replace("-", "").isalnum() and task_id.isascii() and len(task_id) <= 64
    return f"<{task_id if plain else derived_id(task_id)}@{domain}>"
