"""The newsletter's public pages. They need no script, no cookie and no login.

A GET never changes anything: mail scanners open every link they find. A person presses the button on the page, and a
mail program posts to the unsubscribe link itself (RFC 8058).
"""

import base64
import hashlib
from html import escape
from importlib import resources
from string import Template
from urllib.parse import parse_qs

from fastapi import APIRouter
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bellhop.contracts.addresses import CanonicalAddress
from bellhop.contracts.mail import PersonName
from bellhop.sql.database import DatabaseUnavailable
from bellhop.web.problems import Problem
from bellhop.web.strict_json import AnyQueryRoute
from services.gateway.broadcasts.newsletter import Newsletter
from services.gateway.parts import gateway
from services.gateway.public_pages.form_limits import SignUpDecision
from services.gateway.public_pages.links import LinkClaims, LinkKind
from services.gateway.subscribers.store import SignUp

router = APIRouter(route_class=AnyQueryRoute, tags=["newsletter"], include_in_schema=False)

MAX_FORM = 16 * 1024
HONEYPOT = "website"
"""A hidden field: only a program fills it in."""

_FOLDER = resources.files("services.gateway.public_pages") / "pages"
_PAGE = Template((_FOLDER / "page.html").read_text("utf-8"))
_STYLE = (_FOLDER / "page.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; frame-ancestors 'none';"
        " base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    # The address of a page holds its token.
    "Referrer-Policy": "no-referrer",
}
_EMAIL: TypeAdapter[str] = TypeAdapter(CanonicalAddress)
_NAME: TypeAdapter[str] = TypeAdapter(PersonName)


def page(title: str, body: str, status: int = 200, **headers: str) -> Response:
    """Return a page; `title` is escaped here, `body` is HTML."""
    html = _PAGE.substitute(title=escape(title), style=_STYLE, body=body)
    return Response(html, status, _HEADERS | headers, "text/html")


# Sign up


@router.get("/subscribe")
async def form(request: Request) -> Response:
    """Show the form."""
    return _form(gateway(request).newsletter, {})


@router.post("/subscribe")
async def subscribe(request: Request) -> Response:
    """Ask for confirmation by mail. The answer is the same for every address, known or not."""
    parts = gateway(request).newsletter
    try:
        parts.limiter.count_address(request.scope)
        fields = await _read(request)
    except Problem as problem:
        return page("That did not work", f"<p>{escape(problem.detail)}</p>", problem.status, **(problem.headers or {}))
    wrong: list[str] = []
    chosen = tuple(name for name in parts.public_lists if name in fields.get("list", []))
    lists = chosen or tuple(parts.public_lists)[:1]
    email = name = None
    try:
        email = _EMAIL.validate_python(_first(fields, "email"))
    except ValidationError:
        wrong.append("Please give your e-mail address, like ada@example.com.")
    try:
        name = _NAME.validate_python(_first(fields, "name")) if _first(fields, "name") else None
    except ValidationError:
        wrong.append("Please give a name of at most 200 characters, in one line.")
    if wrong or email is None:
        return _form(parts, fields, " ".join(wrong))
    if not _first(fields, HONEYPOT):
        try:
            decision = await parts.form_limits.count_sign_up(email)
            if decision is SignUpDecision.FORM_BUSY:
                return _busy()
            # A mailbox that reached its limit gets no other mail, and the page does not reveal that.
            if decision is SignUpDecision.ALLOWED:
                await parts.sign_up(SignUp(email, lists, name, public=True))
        except DatabaseUnavailable:
            return _unavailable()
    return page(
        "Almost done",
        f"<p>We sent a mail to <strong>{escape(email)}</strong>. Open it and follow the link in it to confirm that you"
        " want our mails.</p><p>Nothing there after some minutes? Look into the spam folder. If you confirmed before,"
        " there is nothing to do.</p>",
    )


def _form(parts: Newsletter, fields: dict[str, list[str]], wrong: str = "") -> Response:
    alert = f'<p role="alert">{escape(wrong)}</p>' if wrong else ""
    choices = ""
    if len(parts.public_lists) > 1:
        boxes = "".join(
            f'<label><input type="checkbox" name="list" value="{escape(name)}"'
            f"{' checked' if name in fields.get('list', list(parts.public_lists)[:1]) else ''}> {escape(title)}</label>"
            for name, title in parts.public_lists.items()
        )
        choices = f"<fieldset><legend>What would you like to have?</legend>{boxes}</fieldset>"
    title = next(iter(parts.public_lists.values())) if len(parts.public_lists) == 1 else "Newsletters"
    body = f"""{alert}<form method="post" action="subscribe" accept-charset="utf-8">
<label for="email">E-mail address</label>
<input type="email" id="email" name="email" required maxlength="320" autocomplete="email"
 value="{escape(_first(fields, "email"))}">
<label for="name">Name <small>(optional)</small></label>
<input type="text" id="name" name="name" maxlength="200" autocomplete="name" value="{escape(_first(fields, "name"))}">
{choices}<div class="extra" aria-hidden="true"><label for="{HONEYPOT}">Leave this empty</label>
<input type="text" id="{HONEYPOT}" name="{HONEYPOT}" tabindex="-1" autocomplete="off"></div>
<button type="submit">Subscribe</button>
</form>
<p><small>We send you a mail to confirm. Every mail has a link to unsubscribe.</small></p>"""
    return page(title, body, 422 if wrong else 200)


def _first(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0].strip()


async def _read(request: Request) -> dict[str, list[str]]:
    """Return the fields of a posted form; raise Problem 413, 415 or 400."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Problem(415, "Unsupported Media Type", "Please use the form on the page.")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise Problem(413, "Content Too Large", "That is too much for this form.")
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError:
        raise Problem(400, "Bad Request", "The form could not be read. Please try it again.") from None


# Confirm, unsubscribe


@router.get("/confirm")
async def ask_to_confirm(request: Request) -> Response:
    """Show the button."""
    claim = _claim(request, LinkKind.CONFIRM)
    if claim is None:
        return _void()
    return page(
        "One more click",
        f"<p>Please confirm that you want to have {_titles(request, claim)} by mail.</p>{_button('Confirm')}",
    )


@router.post("/confirm")
async def confirm(request: Request) -> Response:
    """Confirm."""
    claim = _claim(request, LinkKind.CONFIRM)
    if claim is None:
        return _void()
    parts = gateway(request).newsletter
    try:
        subscribed = await parts.subscribers.confirm(claim.subscriber_id, claim.lists)
    except DatabaseUnavailable:
        return _unavailable()
    if not subscribed:
        return _void()
    return page("You are subscribed", f"<p>You will get {_titles(request, claim)} from now on.</p>")


@router.get("/unsubscribe")
async def ask_to_unsubscribe(request: Request) -> Response:
    """Show the button, and change nothing."""
    claim = _claim(request, LinkKind.UNSUBSCRIBE)
    if claim is None:
        return _void()
    return page(
        "Unsubscribe",
        f"<p>Do you want to have no more mails from {_titles(request, claim)}?</p>{_button('Unsubscribe')}",
    )


@router.post("/unsubscribe")
async def unsubscribe(request: Request) -> Response:
    """Unsubscribe: the button, and a mail program's one click.

    The token says everything. So the body is not read: RFC 8058, 3.2 lets it be a form of either kind.
    """
    claim = _claim(request, LinkKind.UNSUBSCRIBE)
    if claim is None:
        return _void()
    parts = gateway(request).newsletter
    try:
        await parts.subscribers.unsubscribe(claim.subscriber_id, claim.lists)
    except DatabaseUnavailable:
        return _unavailable()
    return page("You are unsubscribed", f"<p>You will get no more mails from {_titles(request, claim)}.</p>")


def _claim(request: Request, kind: LinkKind) -> LinkClaims | None:
    return gateway(request).newsletter.links.read(kind, request.query_params.get("token", ""))


def _button(text: str) -> str:
    # Without an action the form goes to the page's own address, and so keeps the token.
    return f'<form method="post"><button type="submit">{text}</button></form>'


def _titles(request: Request, claim: LinkClaims) -> str:
    titles = gateway(request).newsletter.public_lists
    return " and ".join(f"<strong>{escape(titles.get(name, name))}</strong>" for name in claim.lists)


def _void() -> Response:
    return page(
        "This link does not work",
        '<p>It may be too old, or some of it is missing. To subscribe, <a href="subscribe">ask for a new one</a>.</p>',
        404,
    )


def _busy() -> Response:
    return page(
        "Please try again",
        "<p>Too many people sign up at the moment. Please try it again in an hour.</p>",
        429,
        **{"Retry-After": "3600"},
    )


def _unavailable() -> Response:
    return page(
        "Please try again",
        "<p>We cannot do that at the moment. Please try it again in a minute.</p>",
        503,
        **{"Retry-After": "30"},
    )
