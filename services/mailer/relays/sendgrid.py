"""A relay that is SendGrid's Web API v3 (https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send)."""

import asyncio
import base64
import time
from typing import Any

import httpx
import orjson

from services.mailer.message import Mail
from services.mailer.relays.replies import Cause, Kind, Verdict, lost
from services.mailer.relays.settings import SendGridRelay
from services.mailer.relays.transport import Outgoing, RelayUnavailable

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol, httpx.ProxyError)
_PERMANENT_ABOUT_US = (401, 403)
_UNCERTAIN = (500, 502, 504)


class SendGrid:
    """SendGrid, or a server with the same API. The status 202 means that it has accepted the mail."""

    def __init__(self, settings: SendGridRelay) -> None:
        self._settings = settings
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {settings.api_key.get_secret_value()}"},
            timeout=settings.timeout,
            limits=httpx.Limits(max_connections=settings.connections),
            follow_redirects=False,  # the key must not be sent to another host
        )

    @property
    def address(self) -> str:
        """Return the host."""
        return f"{self._http.base_url.host} (SendGrid)"

    async def send(self, mail: Outgoing) -> Verdict:
        """Send one mail and return the result.

        Raises:
            RelayUnavailable: nothing was sent, for a reason that is not in the mail.
        """
        content = await _json(mail)
        mail.check()
        try:
            answer = await self._http.post("/v3/mail/send", content=content, headers=_JSON)
        except _NOT_SENT as error:
            raise RelayUnavailable(f"cannot use the relay {self.address}: {_sentence(error)}") from error
        except httpx.HTTPError as error:
            # The server may have read the whole request before the connection was lost.
            return lost(f"no answer from {self.address}: {_sentence(error)}", after_dot=True)
        return _verdict(answer)

    async def probe(self) -> None:
        """Request the scopes of the key.

        Raises:
            RelayUnavailable: the server does not answer, or refuses the key.
        """
        try:
            answer = await self._http.get("/v3/scopes")
        except httpx.HTTPError as error:
            raise RelayUnavailable(f"cannot use the relay {self.address}: {_sentence(error)}") from error
        if answer.status_code in _PERMANENT_ABOUT_US or answer.status_code >= 500:
            raise RelayUnavailable(
                f"cannot use the relay {self.address}: it answers {answer.status_code} {_reason(answer)}"
            )

    def sweep(self) -> None:
        """Do nothing: httpx closes idle connections by itself."""

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


_JSON = {"Content-Type": "application/json"}


async def _json(outgoing: Outgoing) -> bytes:
    if not outgoing.mail.attachments:
        return orjson.dumps(document(outgoing))
    # Base64 of megabytes takes tens of milliseconds: in a thread, it does not block the event loop.
    return await asyncio.to_thread(lambda: orjson.dumps(document(outgoing)))


def document(outgoing: Outgoing) -> dict[str, Any]:
    """Return the body of the request."""
    mail: Mail = outgoing.mail
    sender: dict[str, str] = {"email": outgoing.sender}
    if mail.from_name:
        sender["name"] = mail.from_name
    recipient = {"email": outgoing.recipient}
    if mail.to_name:
        recipient["name"] = mail.to_name
    content = [
        {"type": f"text/{kind}", "value": text} for kind, text in (("plain", mail.text), ("html", mail.html)) if text
    ]
    body: dict[str, Any] = {
        "personalizations": [{"to": [recipient]}],
        "from": sender,
        "subject": mail.subject,
        "content": content or [{"type": "text/plain", "value": " "}],  # an empty one is refused
        "headers": {"Message-ID": mail.message_id, **mail.headers},
    }
    if mail.reply_to is not None:
        body["reply_to"] = {"email": mail.reply_to}
    if mail.attachments:
        body["attachments"] = [
            {
                "filename": one.filename,
                "type": one.content_type,
                "content": base64.b64encode(one.content).decode(),
                "disposition": "attachment",
            }
            for one in mail.attachments
        ]
    return body


def _verdict(answer: httpx.Response) -> Verdict:
    status = answer.status_code
    if status == 202:
        return Verdict(Kind.SENT, f"Accepted, X-Message-Id {answer.headers.get('x-message-id', 'none')}", status)
    sentence = _reason(answer)
    if status in _PERMANENT_ABOUT_US or 300 <= status < 400 or status == 404:
        return Verdict(Kind.TRANSIENT, sentence, status, cause=Cause.RELAY, about_relay=True)
    if status == 429:
        return Verdict(Kind.TRANSIENT, sentence, status, cause=Cause.THROTTLED, after=_wait(answer), about_relay=True)
    if status == 413:
        return Verdict(Kind.PERMANENT, sentence, status, cause=Cause.CONTENT)
    if status >= 500:
        uncertain = status in _UNCERTAIN
        return Verdict(Kind.TRANSIENT, sentence, status, cause=Cause.RELAY, after=_wait(answer), uncertain=uncertain)
    if 400 <= status < 500:
        if _refuses_sender(answer):
            return Verdict(Kind.TRANSIENT, sentence, status, cause=Cause.RELAY, about_relay=True)
        return Verdict(Kind.PERMANENT, sentence, status, cause=_cause(answer))
    return Verdict(Kind.TRANSIENT, f"answered {status}, which is not a valid status: {sentence}", status)


def _errors(answer: httpx.Response) -> list[dict[str, Any]]:
    try:
        found = orjson.loads(answer.content)["errors"]
        return [one for one in found if isinstance(one, dict)]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []


def _reason(answer: httpx.Response) -> str:
    said = "; ".join(str(one.get("message")) for one in _errors(answer))
    return " ".join((said or answer.text or answer.reason_phrase).split())[:1000]


def _fields(answer: httpx.Response) -> list[str]:
    return [str(one.get("field") or "") for one in _errors(answer)]


def _refuses_sender(answer: httpx.Response) -> bool:
    return any(field.startswith("from") for field in _fields(answer))


def _cause(answer: httpx.Response) -> Cause:
    fields = _fields(answer)
    if any(field.startswith("personalizations") and ".to" in field for field in fields):
        return Cause.BAD_ADDRESS
    return Cause.CONTENT


def _wait(answer: httpx.Response) -> float | None:
    """Return the seconds until the next request is allowed, by the headers of the answer."""
    after, reset = answer.headers.get("retry-after", ""), answer.headers.get("x-ratelimit-reset", "")
    if after.isdigit():
        return float(min(int(after), 86_400))
    if reset.isdigit():
        return min(max(0.0, int(reset) - time.time()), 86_400.0)
    return None


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
