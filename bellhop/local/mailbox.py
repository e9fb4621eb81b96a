"""The development mailbox: accepts every mail by SMTP, delivers none, and shows them on a page.

Its HTTP API is the part of Mailpit's (https://mailpit.axllent.org/docs/api-v1/) that reads and empties a mailbox, so
clients work with both. The last 20,000 mails are kept in memory.
"""

import asyncio
import json
import signal
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default
from html import escape
from typing import Any

import uvicorn
import uvloop
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import Envelope as SmtpEnvelope
from aiosmtpd.smtp import Session as SmtpSession
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bellhop.contracts.base import new_id
from bellhop.local.ports import LOOPBACK

MAX_MAILS = 20_000
MAX_BYTES = 256 * 2**20
MAX_PAGE = 1000


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One mail as it was received; parsed only when it is read."""

    id: str
    at: datetime
    sender: str
    recipients: list[str] = field(repr=False)
    content: bytes = field(repr=False)

    def parse(self) -> EmailMessage:
        """Return the mail as parsed by the standard library, which does not refuse invalid mails."""
        return message_from_bytes(self.content, policy=default)


class Mailbox:
    """The last mails; the oldest are dropped first. `received` counts all mails."""

    def __init__(self, max_mails: int = MAX_MAILS, max_bytes: int = MAX_BYTES) -> None:
        """Both limits apply."""
        self.received = 0
        self._mails: OrderedDict[str, ReceivedMail] = OrderedDict()
        self._bytes = 0
        self._max_mails = max_mails
        self._max_bytes = max_bytes

    def __len__(self) -> int:
        """Return the number of kept mails."""
        return len(self._mails)

    def add(self, sender: str, recipients: list[str], content: bytes) -> None:
        """Keep one mail."""
        mail = ReceivedMail(new_id(), datetime.now(UTC), sender, recipients, content)
        self._mails[mail.id] = mail
        self._bytes += len(content)
        self.received += 1
        while len(self._mails) > self._max_mails or (self._bytes > self._max_bytes and len(self._mails) > 1):
            _, oldest = self._mails.popitem(last=False)
            self._bytes -= len(oldest.content)

    def get(self, mail_id: str) -> ReceivedMail | None:
        """Return one mail, or None."""
        return self._mails.get(mail_id)

    def page(self, start: int, limit: int) -> list[ReceivedMail]:
        """Return up to `limit` mails, the newest first, without the first `start`."""
        ids = list(reversed(self._mails))[start : start + limit]
        return [self._mails[mail_id] for mail_id in ids]

    def clear(self) -> None:
        """Delete all mails; `received` is not reset."""
        self._mails.clear()
        self._bytes = 0


class _Handler:
    """Handler of aiosmtpd."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    async def handle_DATA(self, server: SMTP, session: SmtpSession, envelope: SmtpEnvelope) -> str:  # noqa: N802
        self._mailbox.add(envelope.mail_from or "", list(envelope.rcpt_tos), envelope.original_content or b"")
        return "250 2.0.0 OK"


async def serve(smtp_port: int, http_port: int) -> None:
    """Serve SMTP and HTTP on the loopback address until SIGTERM or SIGINT."""
    mailbox = Mailbox()
    handler = _Handler(mailbox)
    loop = asyncio.get_running_loop()
    smtp = await loop.create_server(
        lambda: SMTP(handler, hostname="bellhop.localhost", enable_SMTPUTF8=True, loop=loop), LOOPBACK, smtp_port
    )
    config = uvicorn.Config(
        create_app(mailbox), host=LOOPBACK, port=http_port, log_config=None, access_log=False, server_header=False
    )
    http = _Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, setattr, http, "should_exit", True)
    await http.serve()
    smtp.close()


class _Server(uvicorn.Server):
    """Does not handle signals: uvicorn would raise them again after its shutdown, so the exit status would be wrong."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run(smtp_port: int, http_port: int) -> None:
    """Run the mailbox in this process."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(smtp_port, http_port))


class _Json(JSONResponse):
    """JSON in which text that is not valid UTF-8 is replaced, so that no mail makes a whole list fail."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")


def create_app(mailbox: Mailbox) -> Starlette:
    """Return the HTTP side."""

    async def list_mails(request: Request) -> Response:
        try:
            start = max(0, int(request.query_params.get("start", "0")))
            limit = min(MAX_PAGE, max(0, int(request.query_params.get("limit", "50"))))
        except ValueError:
            return PlainTextResponse("start and limit must be whole numbers", 400)
        page = [summary(mail) for mail in mailbox.page(start, limit)]
        return _Json(
            {
                "total": len(mailbox),
                "unread": len(mailbox),
                "count": len(page),
                "messages_count": len(mailbox),
                "start": start,
                "tags": [],
                "messages": page,
                "received": mailbox.received,  # not in Mailpit's API: counts dropped mails, too
            }
        )

    async def show_mail(request: Request) -> Response:
        mail = mailbox.get(request.path_params["id"])
        if mail is None:
            return PlainTextResponse("there is no such mail (any more)", 404)
        return _Json(document(mail))

    async def show_source(request: Request) -> Response:
        mail = mailbox.get(request.path_params["id"])
        if mail is None:
            return PlainTextResponse("there is no such mail (any more)", 404)
        return PlainTextResponse(mail.content, headers=_SAFE)

    async def delete_mails(request: Request) -> Response:
        # Mailpit's call can also delete by id. Refuse that: it must not delete all mails.
        if await request.body() not in (b"", b"{}"):
            return PlainTextResponse("this mailbox can only be emptied as a whole: send no body", 400)
        mailbox.clear()
        return PlainTextResponse("ok")

    async def live(_: Request) -> Response:
        return PlainTextResponse("ok")

    async def list_page(_: Request) -> Response:
        return HTMLResponse(render_list(mailbox), headers=_SAFE)

    async def mail_page(request: Request) -> Response:
        mail = mailbox.get(request.path_params["id"])
        if mail is None:
            return HTMLResponse(_page("Not here", "<p>There is no such mail (any more).</p>"), 404, headers=_SAFE)
        return HTMLResponse(render_mail(mail), headers=_SAFE)

    return Starlette(
        routes=[
            Route("/", list_page),
            Route("/view/{id}", mail_page),
            Route("/view/{id}/source", show_source),
            Route("/api/v1/messages", list_mails, methods=["GET"]),
            Route("/api/v1/messages", delete_mails, methods=["DELETE"]),
            Route("/api/v1/message/{id}", show_mail),
            Route("/api/v1/message/{id}/raw", show_source),
            Route("/livez", live),
        ],
        # Prevents DNS rebinding: another page could read the mails through a name that resolves to 127.0.0.1.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "*.localhost"])],
    )


def summary(mail: ReceivedMail) -> dict[str, Any]:
    """Return one entry of Mailpit's list."""
    message = mail.parse()
    return _common(mail, message) | {
        "Created": mail.at.isoformat(),
        "Read": False,
        "Attachments": sum(1 for _ in message.iter_attachments()),
        "Snippet": " ".join(_body(message, "plain").split())[:250],
    }


def document(mail: ReceivedMail) -> dict[str, Any]:
    """Return one mail as Mailpit does."""
    message = mail.parse()
    return _common(mail, message) | {
        "Date": mail.at.isoformat(),
        "ReturnPath": mail.sender,
        "Text": _body(message, "plain"),
        "HTML": _body(message, "html"),
        "Inline": [],
        "Attachments": [
            {
                "PartID": str(number),
                "FileName": _as_utf8(part.get_filename() or ""),
                "ContentType": part.get_content_type(),
                "Size": len(part.get_payload(decode=True) or b""),
            }
            for number, part in enumerate(message.iter_attachments(), 1)
        ],
    }


def _common(mail: ReceivedMail, message: EmailMessage) -> dict[str, Any]:
    shown = {address["Address"] for name in ("To", "Cc") for address in _addresses(message, name)}
    return {
        "ID": mail.id,
        "MessageID": _header(message, "Message-ID").strip().strip("<>"),
        "From": next(iter(_addresses(message, "From")), {"Name": "", "Address": mail.sender}),
        "To": _addresses(message, "To"),
        "Cc": _addresses(message, "Cc"),
        "Bcc": [{"Name": "", "Address": address} for address in mail.recipients if address not in shown],
        "ReplyTo": _addresses(message, "Reply-To"),
        "Subject": _header(message, "Subject"),
        "Tags": [],
        "Size": len(mail.content),
    }


def _header(message: EmailMessage, name: str) -> str:
    try:
        return _as_utf8(str(message.get(name, "")))
    except Exception:  # the parser of the standard library fails on some headers that others send
        return ""


def _addresses(message: EmailMessage, name: str) -> list[dict[str, str]]:
    try:
        addresses: tuple[Address, ...] = message[name].addresses if message[name] is not None else ()
    except Exception:  # as above
        return []
    return [{"Name": _as_utf8(each.display_name), "Address": _as_utf8(each.addr_spec)} for each in addresses]


def _as_utf8(text: str) -> str:
    """Return a header whose raw bytes are UTF-8 (RFC 6532); the parser leaves each byte as half a surrogate pair."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _body(message: EmailMessage, kind: str) -> str:
    part = message.get_body(preferencelist=(kind,))
    if part is None:
        return ""
    try:
        return str(part.get_content())
    except (LookupError, ValueError):  # an unknown charset
        payload = part.get_payload(decode=True)
        return payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""


# No script of a mail runs, and no resource is fetched; links open in a new window.
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-src 'self';"
    " base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; background: Canvas; color: CanvasText }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #8884; vertical-align: top }
td { overflow-wrap: anywhere }
pre { white-space: pre-wrap; overflow-wrap: anywhere }
iframe { width: 100%; height: 60vh; border: 1px solid #8884; background: #fff }
"""


def _page(title: str, content: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>{content}</main></body></html>"
    )


def render_list(mailbox: Mailbox) -> str:
    """Return the page with the newest 200 mails."""
    rows = []
    for mail in mailbox.page(0, 200):
        message = mail.parse()
        subject = _header(message, "Subject") or "(no subject)"
        rows.append(
            f"<tr><td>{mail.at:%Y-%m-%d %H:%M:%S}</td><td>{escape(', '.join(mail.recipients))}</td>"
            f'<td><a href="/view/{mail.id}">{escape(subject)}</a></td></tr>'
        )
    table = (
        "<table><thead><tr><th>When (UTC)</th><th>To</th><th>Subject</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
        if rows
        else "<p>No mail yet.</p>"
    )
    counts = f"<p>{mailbox.received:,} received, {len(mailbox):,} kept, the newest {len(rows)} shown.</p>"
    return _page("Development mailbox", f"<h1>Development mailbox</h1>{counts}{table}")


def render_mail(mail: ReceivedMail) -> str:
    """Return the page of one mail."""
    message = mail.parse()
    headers = "".join(
        f"<tr><th>{name}</th><td>{escape(_header(message, name))}</td></tr>"
        for name in ("From", "To", "Cc", "Reply-To", "Date", "Message-ID", "List-Unsubscribe")
        if message.get(name) is not None
    )
    text, html = _body(message, "plain"), _body(message, "html")
    parts = [f"<pre>{escape(text)}</pre>"] if text else []
    if html:
        inner = escape(f'<base target="_blank">{html}', quote=True)
        parts.append(
            '<iframe title="The HTML of this mail" sandbox="allow-popups allow-popups-to-escape-sandbox"'
            f' srcdoc="{inner}"></iframe>'
        )
    return _page(
        _header(message, "Subject") or "(no subject)",
        f'<p><a href="/">All mails</a> · <a href="/view/{mail.id}/source">Source</a></p>'
        f"<h1>{escape(_header(message, 'Subject') or '(no subject)')}</h1>"
        f"<table><tbody>{headers}<tr><th>Envelope</th><td>{escape(mail.sender)} to"
        f" {escape(', '.join(mail.recipients))}</td></tr></tbody></table>{''.join(parts)}",
    )
